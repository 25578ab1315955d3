package api

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// header says what a client needs to know to send each operation to the right node.
func (g *GRPC) header() metadata.MD {
	md := metadata.Pairs(kvwire.HeaderNode, g.deps.Backend.Self())
	if n := g.deps.Backend.PartitionCount(); n > 0 {
		md.Set(kvwire.HeaderPartitions, strconv.Itoa(n))
	}
	return md
}

// Stream implements the stream of operations: the handler's goroutine receives, one goroutine sends, and workers run the
// operations.
func (g *GRPC) Stream(stream grpc.BidiStreamingServer[kvpb.OperationBatch, kvpb.ResultBatch]) error {
	if !g.enter() {
		return statusOf(shuttingDown())
	}
	defer g.leave()
	// The header tells the client at once that this node serves, and which one it is.
	if err := stream.SendHeader(g.header()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	s := newOpStream(ctx, g)

	var sender sync.WaitGroup
	var sendErr error
	sender.Go(func() {
		if sendErr = s.send(stream); sendErr != nil {
			cancel() // nobody will hear of the operations under way
		}
	})
	err := s.receive(stream)
	if err != nil {
		cancel()
	}
	s.stopWorkers()
	s.out.close()
	sender.Wait()
	if err == nil {
		err = sendErr
	}
	return err
}

// opStream is one stream of operations.
type opStream struct {
	g   *GRPC
	ctx context.Context // ends with the stream
	out *outbox

	tasks   chan *task // hands an operation to an idle worker; not buffered
	idle    atomic.Int32
	workers sync.WaitGroup
}

// task is one operation under way.
type task struct {
	id       uint64
	request  kv.Request
	deadline *sharedDeadline
	reserved int // of the stream's bytes
}

// sharedDeadline is the context of the operations of one message that end at the same time. A context for each would cost more
// than anything else that the front does for an operation, and those of one message mostly have the same timeout.
type sharedDeadline struct {
	context.Context
	timeout time.Duration
	cancel  context.CancelFunc
	users   atomic.Int32
}

// release ends the context with its last user.
func (d *sharedDeadline) release() {
	if d.users.Add(-1) == 0 {
		d.cancel()
	}
}

func newOpStream(ctx context.Context, g *GRPC) *opStream {
	return &opStream{g: g, ctx: ctx, out: newOutbox(g.cfg), tasks: make(chan *task)}
}

// receive accepts operations until the client closes its side or the stream breaks.
func (s *opStream) receive(stream grpc.ServerStream) error {
	frame := kvwire.NewFrame()
	for {
		err := stream.RecvMsg(frame)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		batch := deadlines{parent: s.ctx, from: time.Now()}
		err = kvwire.DecodeOperations(frame.Data, func(op *kvwire.Operation) { s.accept(op, &batch) })
		batch.release()
		if err != nil {
			return status.Error(codes.InvalidArgument, "the message is no batch of operations that this node understands")
		}
		if s.ctx.Err() != nil {
			return status.FromContextError(s.ctx.Err()).Err()
		}
	}
}

// accept answers an operation that cannot be run, and has a worker run any other.
func (s *opStream) accept(op *kvwire.Operation, batch *deadlines) {
	size := len(op.Request.Key) + len(op.Request.Value)
	reserved, ok := s.out.reserve(s.ctx, size, op.Request.Op == kv.OpGet)
	if !ok {
		return // the stream has broken; so there is nobody to answer
	}
	if failure := s.g.accept(op); failure != nil {
		s.g.exec.refuse(op.Request.Level, op.Request.Op)
		s.out.add(&kvwire.Result{ID: op.ID, Err: failure}, reserved)
		return
	}
	t := &task{id: op.ID, request: op.Request, deadline: batch.of(op.Timeout), reserved: reserved}
	if t.deadline.Err() != nil && s.ctx.Err() == nil {
		// It has waited for room all the time it had. Refusing it now is more than its deadline in the node could say: nothing of
		// it was begun.
		t.deadline.release()
		s.g.exec.refuse(op.Request.Level, op.Request.Op)
		s.out.add(&kvwire.Result{ID: op.ID, Err: kv.Errorf(kv.CodeDeadlineExceeded, "the deadline passed before the operation was begun")}, reserved)
		return
	}
	select {
	case s.tasks <- t:
	default:
		s.workers.Go(func() { s.work(t) })
	}
}

// work runs an operation, and then others as they come. A goroutine that has grown its stack to an operation's depth is worth
// keeping: a new one for each operation cost twice as much (BenchmarkStreamWorkers).
func (s *opStream) work(t *task) {
	var result kvwire.Result // reused for its slice of names
	for t != nil {
		s.run(t, &result)
		t = nil
		if int(s.idle.Add(1)) <= s.g.cfg.IdleWorkersMax {
			t = <-s.tasks // nil once no more will come
		}
		s.idle.Add(-1)
	}
}

// stopWorkers waits for the operations under way.
func (s *opStream) stopWorkers() {
	close(s.tasks)
	s.workers.Wait()
}

// run executes one operation and hands its result to the sender.
func (s *opStream) run(t *task, result *kvwire.Result) {
	kind := t.request.Op
	response, failure := s.g.exec.execute(t.deadline, &t.request)
	t.deadline.release()
	result.ID = t.id
	if failure != nil {
		s.g.note(failure)
		*result = kvwire.Result{ID: t.id, Replicas: result.Replicas[:0], Err: failure}
	} else {
		s.g.fillResult(result, kind, &response)
	}
	s.out.add(result, t.reserved)
}

// deadlines makes the contexts of one message's operations.
type deadlines struct {
	parent context.Context
	from   time.Time // when the message came; waiting for room counts
	last   *sharedDeadline
}

// of returns a context that ends after the timeout, for one user.
func (d *deadlines) of(timeout time.Duration) *sharedDeadline {
	if d.last == nil || d.last.timeout != timeout {
		d.release()
		ctx, cancel := context.WithDeadline(d.parent, d.from.Add(timeout))
		d.last = &sharedDeadline{Context: ctx, timeout: timeout, cancel: cancel}
		d.last.users.Store(1) // d itself, until the next
	}
	d.last.users.Add(1)
	return d.last
}

// release gives up the last context for new users.
func (d *deadlines) release() {
	if d.last != nil {
		d.last.release()
		d.last = nil
	}
}
