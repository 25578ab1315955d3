package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// silenceMax is how long an endpoint may say nothing at all while operations on it expire, before its stream counts as dead.
	// Keepalive finds the same, but not before 13 s, in which every operation sent there would be lost.
	silenceMax = time.Second
	// answerGrace is how long after an operation's deadline the server's word that it passed may take to arrive.
	answerGrace = 250 * time.Millisecond
)

// conn is the client's side of one endpoint: a queue, one stream, and the operations that were sent on it.
//
// One goroutine, run, opens a stream at a time and receives from it; while a stream is open, a second one sends. Whatever was on
// a stream that ended is handed back to the client when both are through with it.
type conn struct {
	client   *Client
	index    int
	endpoint string
	cc       *grpc.ClientConn
	rng      *rand.Rand    // owned by run
	wake     chan struct{} // one slot: the queue is no longer empty
	up       atomic.Bool   // operations can be queued; written under mu

	mu       sync.Mutex // guards what follows
	queue    []*call    // in state queued, or ended meanwhile; bounded by the client's limit on what is outstanding
	table    table      // in state sent, or ended meanwhile
	failure  error      // why the endpoint is not up
	heard    time.Time  // when the last message came, or the stream was opened
	hangUp   context.CancelFunc
	draining bool // the server asked for nothing more on this stream
}

func newConn(c *Client, index int, endpoint string, cc *grpc.ClientConn, rng *rand.Rand) *conn {
	return &conn{client: c, index: index, endpoint: endpoint, cc: cc, rng: rng, wake: make(chan struct{}, 1)}
}

// enqueue takes an operation in state queued, and refuses it while no stream is up.
func (c *conn) enqueue(op *call) bool {
	c.mu.Lock()
	if !c.up.Load() {
		c.mu.Unlock()
		return false
	}
	c.queue = append(c.queue, op)
	first := len(c.queue) == 1
	c.mu.Unlock()
	if first {
		c.poke()
	}
	return true
}

// poke wakes the sender.
func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) lastFailure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// run keeps a stream open until ctx is done.
func (c *conn) run(ctx context.Context) {
	pause := c.client.cfg.BackoffMin
	for ctx.Err() == nil {
		opened, err := c.session(ctx)
		c.handBack(ctx, err)
		if ctx.Err() != nil {
			return
		}
		if opened {
			pause = c.client.cfg.BackoffMin
			c.client.log.Warn("lost an endpoint", slog.String("endpoint", c.endpoint), slog.Any("error", err))
		}
		// Half of the pause is random, so that many clients do not return to a node all at once.
		if !sleep(ctx, pause/2+time.Duration(c.rng.Int64N(int64(pause/2)+1))) {
			return
		}
		pause = min(2*pause, c.client.cfg.BackoffMax)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// session opens a stream and serves it until it ends, with an error that says why. opened: there was a stream.
func (c *conn) session(ctx context.Context) (opened bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.open(ctx, cancel)
	if err != nil {
		return false, err
	}
	c.setUp(cancel)
	c.client.log.Debug("reached an endpoint", slog.String("endpoint", c.endpoint))

	var sender sync.WaitGroup
	sender.Go(func() {
		if err := c.send(ctx, stream); err != nil {
			cancel() // the receiver learns the reason from the stream itself
		}
	})
	err = c.receive(stream)
	cancel()
	sender.Wait()
	return true, err
}

// setUp lets operations come.
func (c *conn) setUp(hangUp context.CancelFunc) {
	c.mu.Lock()
	c.up.Store(true)
	c.failure, c.heard, c.hangUp, c.draining = nil, time.Now(), hangUp, false
	c.mu.Unlock()
	c.client.janitor.kick() // what was parked for want of an endpoint can go on
}

// handBack returns what the ended stream leaves: what was queued can go elsewhere; of what was sent nobody knows the fate.
func (c *conn) handBack(ctx context.Context, why error) {
	c.mu.Lock()
	c.up.Store(false)
	c.failure = why
	queue := c.queue
	c.queue = nil
	lost := c.table.takeAll(nil)
	c.mu.Unlock()
	for _, op := range queue {
		if op.move(queued, parked) {
			c.client.dispatch(op)
		}
	}
	for _, op := range lost {
		if ctx.Err() != nil {
			op.abandon(closed())
			continue
		}
		err := kv.Errorf(kv.CodeNotReady, "lost the connection to %s: %w", c.endpoint, why)
		if op.write() {
			err = err.WithOutcome(kv.OutcomeUnknown)
		}
		c.client.failed(op, c.index, err, true)
	}
}

// sweep ends operations whose deadline has passed, and reports whether any are left. Where the server, which knows the deadline
// too, has not said a word since it was sent such an operation, the stream is given up.
func (c *conn) sweep(now time.Time) (inFlight bool) {
	var expired []*call
	silent := false
	c.mu.Lock()
	crowded := c.table.len() > c.client.cfg.OutstandingOpsMax // with operations whose callers gave up
	c.table.drop(func(op *call) bool {
		ended := op.state.Load() == done
		if !ended && !now.Before(op.deadline) {
			expired = append(expired, op)
		}
		if now.Sub(op.deadline) < answerGrace {
			return ended && crowded
		}
		silent = silent || (op.sentAt.After(c.heard) && now.Sub(op.sentAt) > silenceMax)
		return true
	})
	for _, op := range c.queue {
		if !now.Before(op.deadline) {
			expired = append(expired, op) // the sender drops it when it comes to it
		}
	}
	inFlight = c.table.len()+len(c.queue) > 0
	hangUp := c.hangUp
	c.mu.Unlock()
	for _, op := range expired {
		op.expire()
	}
	if silent && hangUp != nil {
		hangUp()
	}
	return inFlight
}

// receive hands results to their operations until the stream ends.
func (c *conn) receive(stream grpc.ClientStream) error {
	frame := kvwire.NewFrame()
	var names kvwire.Names
	var replicas []string // of the last result; mostly those of the next one too
	for {
		err := stream.RecvMsg(frame)
		if errors.Is(err, io.EOF) {
			return errors.New("the node ended the stream")
		}
		if err != nil {
			return statusError(err)
		}
		c.mu.Lock()
		c.heard = time.Now()
		c.mu.Unlock()
		draining, err := kvwire.DecodeResults(frame.Data, &names, func(r *kvwire.Result) {
			if !slices.Equal(replicas, r.Replicas) {
				replicas = slices.Clone(r.Replicas)
			}
			c.deliver(r, replicas)
		})
		if err != nil {
			return err
		}
		if draining {
			c.drain()
		}
	}
}

// deliver ends the operation that the result belongs to, or sees to another attempt.
func (c *conn) deliver(r *kvwire.Result, replicas []string) {
	c.mu.Lock()
	op := c.table.take(r.ID)
	c.mu.Unlock()
	if op == nil {
		return // its deadline passed before
	}
	if r.Err != nil {
		if !op.write() {
			r.Err.Outcome = kv.OutcomeNotApplied
		}
		c.client.failed(op, c.index, r.Err, false)
		return
	}
	if !op.move(sent, done) {
		return
	}
	c.client.routes.answered(c.index, op.op.Request.Key, r)
	op.result.fill(r, replicas)
	if op.op.Request.Op == kv.OpGet && !r.Found {
		op.publish(c.client.notFound)
		return
	}
	op.publish(nil)
}

// drain lets no more operations come, and has the sender close its side of the stream. What is queued goes elsewhere.
func (c *conn) drain() {
	c.mu.Lock()
	c.up.Store(false)
	c.draining = true
	c.failure = errors.New("the node is shutting down")
	queue := c.queue
	c.queue = nil
	c.mu.Unlock()
	c.poke()
	for _, op := range queue {
		if op.move(queued, parked) {
			c.client.dispatch(op)
		}
	}
}
