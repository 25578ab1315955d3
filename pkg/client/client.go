package client

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// operationBytesMax bounds one operation, far above any sensible limit of a cluster: a message over the server's bound would
// break the stream, and with it every operation under way on it.
const operationBytesMax = 24 << 20

// Client sends operations to a cluster. Its methods may be called by any number of goroutines.
type Client struct {
	cfg    Config
	log    *slog.Logger
	conns  []*conn
	pacing pacing
	born   time.Time // where turns are counted from
	routes *routes
	// sessions name strong writes, by their keys' places on the ring.
	sessions []*session
	turn     atomic.Uint64 // counts operations, where each gets the next endpoint; starts anywhere

	// outstanding bounds what is not answered yet, by weight: see weigh.
	outstanding *semaphore.Weighted

	janitor  *janitor
	stop     context.CancelFunc
	running  sync.WaitGroup
	closing  sync.Once
	notFound *kv.Error // the answer to reads of absent keys; shared, because such reads are frequent and errors are immutable
}

// NewClient returns a client of the cluster that the endpoints (host:port of the gRPC interface) belong to, without
// encryption and with default limits. It does not wait for a connection. Close it after use.
func NewClient(endpoints []string) (*Client, error) {
	return New(DefaultConfig(endpoints), Deps{})
}

// New returns a client. It does not wait for a connection: operations wait for one, within their deadlines. Close it after use.
func New(cfg Config, deps Deps) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Rand == nil {
		deps.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	c := &Client{
		cfg:         cfg,
		log:         deps.Logger,
		born:        time.Now(),
		routes:      newRoutes(),
		sessions:    newSessions(),
		pacing:      pacing{endpoints: len(cfg.Endpoints), retryMin: cfg.RetryMin, retryMax: cfg.RetryMax},
		outstanding: semaphore.NewWeighted(int64(cfg.OutstandingBytesMax)),
		notFound:    kv.Errorf(kv.CodeKeyNotFound, "the key does not exist"),
	}
	c.turn.Store(deps.Rand.Uint64N(uint64(len(cfg.Endpoints))))
	for i, endpoint := range cfg.Endpoints {
		cc, err := dial(endpoint, cfg, deps.DialOptions)
		if err != nil {
			c.closeConns()
			return nil, fmt.Errorf("client: endpoint %s: %w", endpoint, err)
		}
		seeded := rand.New(rand.NewPCG(deps.Rand.Uint64(), uint64(i)))
		c.conns = append(c.conns, newConn(c, i, endpoint, cc, seeded))
	}
	c.janitor = newJanitor(c)
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.running.Go(func() { c.janitor.run(ctx) })
	for _, conn := range c.conns {
		c.running.Go(func() { conn.run(ctx) })
	}
	return c, nil
}

// Close ends every outstanding operation, those that were sent with an unknown outcome, and closes the connections.
// It returns once everything has stopped. Operations that are started later fail.
func (c *Client) Close() error {
	c.closing.Do(func() {
		c.janitor.close()
		c.stop()
		c.running.Wait()
		c.closeConns()
	})
	return nil
}

func (c *Client) closeConns() {
	for _, conn := range c.conns {
		_ = conn.cc.Close() // it fails only when it was closed before
	}
}

// closed is the error of operations that Close ended.
func closed() *kv.Error {
	err := kv.Errorf(kv.CodeNotReady, "the client is closed")
	err.Retryable = false
	return err
}

// unreachable says why no endpoint takes operations.
func (c *Client) unreachable() *kv.Error {
	for _, conn := range c.conns {
		if why := conn.lastFailure(); why != nil {
			return kv.Errorf(kv.CodeNotReady, "no endpoint could be reached before the deadline; %s: %w", conn.endpoint, why)
		}
	}
	return kv.Errorf(kv.CodeNotReady, "no endpoint could be reached before the deadline")
}

// anyUp reports whether an endpoint takes operations.
func (c *Client) anyUp() bool {
	for _, conn := range c.conns {
		if conn.up.Load() {
			return true
		}
	}
	return false
}

// weigh returns what an operation takes of the limit on outstanding bytes. Each weighs at least its share of the limit on outstanding
// operations, so that one semaphore keeps both bounds.
func (c *Client) weigh(op *kvwire.Operation) int64 {
	share := c.cfg.OutstandingBytesMax / c.cfg.OutstandingOpsMax
	return int64(min(max(op.Size(), share, 1), c.cfg.OutstandingBytesMax))
}

// start accepts an operation and sends it on its way. It waits while too much is outstanding.
func (c *Client) start(ctx context.Context, req kv.Request, options []Option) *call {
	r := request{Request: req, timeout: c.cfg.Timeout}
	for _, option := range options {
		option(&r)
	}
	out := &call{
		client: c, op: kvwire.Operation{Request: r.Request}, deadline: time.Now().Add(r.timeout), finished: make(chan struct{}),
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(out.deadline) {
		out.deadline = deadline
	}
	if err := c.admit(ctx, out, r.refused); err != nil {
		out.err = err
		out.state.Store(done)
		close(out.finished)
		return out
	}
	c.name(out)
	c.dispatch(out)
	c.janitor.watch()
	return out
}

// admit checks the operation and takes its weight of the limit on what is outstanding.
func (c *Client) admit(ctx context.Context, out *call, refused *kv.Error) *kv.Error {
	if refused != nil {
		return refused
	}
	if size := out.op.Size(); size > operationBytesMax {
		return kv.Errorf(kv.CodeValueTooLarge, "the operation has %d bytes; no more than %d can be sent", size, operationBytesMax)
	}
	weight := c.weigh(&out.op)
	if !c.outstanding.TryAcquire(weight) {
		waiting, cancel := context.WithDeadline(ctx, out.deadline)
		defer cancel()
		if c.outstanding.Acquire(waiting, weight) != nil {
			return kv.Errorf(kv.CodeOverloaded, "too many operations of this client are outstanding")
		}
	}
	out.weight = weight
	return nil
}

// dispatch queues a parked operation at an endpoint, or leaves it parked where none is up.
func (c *Client) dispatch(op *call) {
	if !op.move(parked, queued) {
		return
	}
	for _, conn := range c.candidates(op) {
		if conn.enqueue(op) {
			return
		}
	}
	if op.move(queued, parked) {
		c.janitor.park(op)
	}
}

// first returns the index of the endpoint whose turn it is.
func (c *Client) first() int {
	var turn uint64
	if c.cfg.TurnEvery > 0 {
		turn = c.turn.Load() + uint64(time.Since(c.born)/c.cfg.TurnEvery)
	} else {
		turn = c.turn.Add(1)
	}
	return int(turn % uint64(len(c.conns)))
}

// candidates returns the endpoints in the order in which the operation should try them: those that are up, untried ones first,
// starting with the one that works on the operation's partition, as far as it is known, or the one whose turn it is.
func (c *Client) candidates(op *call) []*conn {
	count, start := len(c.conns), c.routes.endpoint(&op.op.Request)
	if start == unrouted {
		start = c.first()
	}
	if first := c.conns[start]; first.up.Load() && op.tried&(1<<start) == 0 {
		return c.conns[start : start+1 : start+1] // the usual case, without memory of its own
	}
	untried, others := make([]*conn, 0, count), []*conn(nil)
	for i := range count {
		conn := c.conns[(start+i)%count]
		switch {
		case !conn.up.Load():
		case op.tried&(1<<conn.index) == 0:
			untried = append(untried, conn)
		default:
			others = append(others, conn)
		}
	}
	return append(untried, others...)
}

// failed decides what follows a failed attempt of an operation in state sent: it is answered, or parked for another.
func (c *Client) failed(op *call, index int, err *kv.Error, lost bool) {
	if blames(err, lost) {
		c.routes.failed(index, &op.op.Request)
	}
	if op.write() && err.Outcome != kv.OutcomeNotApplied {
		op.unsure.Store(true)
	}
	pause, again := c.pacing.next(failure{
		write: op.write(), named: !op.op.Request.ID.IsZero(), unsure: op.unsure.Load(), attempts: op.attempts, err: err, lost: lost,
	})
	now := time.Now()
	if !again || !now.Add(pause).Before(op.deadline) {
		if op.move(sent, done) {
			op.publish(op.verdict(err))
		}
		return
	}
	op.refusal.Store(err)
	op.tried |= 1 << index
	op.notBefore = now.Add(pause)
	if !op.move(sent, parked) {
		return // its deadline came first
	}
	if pause > 0 {
		c.janitor.park(op)
		return
	}
	c.dispatch(op)
}
