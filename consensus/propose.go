package consensus

import (
	"context"
	"sync/atomic"

	"github.com/caprockdb/caprock/pkg/kv"
)

// States of an op. Whoever moves it away from queued decides what a deadline means for it.
const (
	opQueued uint32 = iota
	// opProposed: the loop has put the command into an entry. From here on the caller cannot know that it did nothing.
	opProposed
	// opAbandoned: the caller went away before that; the loop drops the command.
	opAbandoned
)

// opOverhead is what a queued proposal costs beside its key and command.
const opOverhead = 128

// op is one proposal on its way. The loop owns result and err until it puts a token into done.
type op struct {
	view    *view
	key     []byte
	more    [][]byte
	command []byte
	bytes   int64
	state   atomic.Uint32
	done    chan struct{} // one slot
	result  Result
	err     error
}

// Propose replicates the command and returns what its machine replied. It works on the leader only; elsewhere, and
// whenever the command can be proved to never apply, the error's outcome is OutcomeNotApplied. Once the command is in an
// entry, a deadline that passes or a store that stops leaves the outcome unknown.
func (s *Store) Propose(ctx context.Context, g kv.GroupID, p Proposal) (Result, error) {
	v, err := s.leading(g)
	if err != nil {
		return Result{}, err
	}
	size := int64(len(p.Key) + len(p.Command) + opOverhead)
	for _, key := range p.More {
		size += int64(len(key))
	}
	if err := s.reserve(v, len(p.Command), size); err != nil {
		return Result{}, err
	}
	o := s.ops.Get().(*op)
	o.view, o.key, o.more, o.command, o.bytes = v, p.Key, p.More, p.Command, size
	o.state.Store(opQueued)
	if !s.inbox.postOp(o) {
		s.release(v, size)
		return Result{}, stopped(kv.OutcomeNotApplied)
	}
	select {
	case <-o.done:
		res, err := o.result, o.err
		s.recycle(o)
		return res, err
	case <-ctx.Done():
		return s.abandon(ctx, o)
	}
}

// leading returns the group's view if this node leads the group as far as it knows.
func (s *Store) leading(g kv.GroupID) (*view, error) {
	v := s.views.get(g)
	if v == nil {
		return nil, notLeader(g, kv.NoNode)
	}
	if leader := v.leaderID(); leader != s.deps.Self {
		return nil, notLeader(g, leader)
	}
	if s.silent(v) {
		return nil, outOfTouch(g)
	}
	return v, nil
}

// reserve takes room for a proposal, or refuses it while nothing has been done about it.
func (s *Store) reserve(v *view, command int, size int64) error {
	if command > s.cfg.CommandBytesMax {
		return kv.Errorf(kv.CodeValueTooLarge, "the command has %d bytes; the limit is %d", command, s.cfg.CommandBytesMax)
	}
	if s.deps.Engine.Pressure() >= s.cfg.PressureMax {
		return s.overloaded("pressure", "storage is close to stalling")
	}
	// A proposal larger than the whole limit is let through when it would be alone.
	if n := v.pendingBytes.Add(size); n > s.cfg.GroupPendingBytesMax && n > size {
		v.pendingBytes.Add(-size)
		return s.overloaded("group_pending", "too many writes of this partition are pending")
	}
	if n := s.pendingBytes.Add(size); n > s.cfg.NodePendingBytesMax && n > size {
		s.release(v, size)
		return s.overloaded("node_pending", "too many writes are pending on this node")
	}
	return nil
}

func (s *Store) release(v *view, size int64) {
	v.pendingBytes.Add(-size)
	s.pendingBytes.Add(-size)
}

// recycle gives back an op that the loop is done with.
func (s *Store) recycle(o *op) {
	o.view, o.key, o.more, o.command, o.result, o.err = nil, nil, nil, nil, Result{}, nil
	s.ops.Put(o)
}

// abandon ends a proposal whose caller cannot wait any longer.
func (s *Store) abandon(ctx context.Context, o *op) (Result, error) {
	if o.state.CompareAndSwap(opQueued, opAbandoned) {
		return Result{}, kv.Errorf(kv.CodeDeadlineExceeded, "the write was not proposed in time: %w", context.Cause(ctx))
	}
	select {
	case <-o.done: // the answer came at the same moment
		res, err := o.result, o.err
		s.recycle(o)
		return res, err
	default:
	}
	s.metrics.proposals.WithLabelValues(endUnknown).Inc()
	return Result{}, kv.Errorf(kv.CodeDeadlineExceeded, "the write was proposed and has not been committed in time: %w",
		context.Cause(ctx)).WithOutcome(kv.OutcomeUnknown)
}

// finish answers a proposal.
func (s *Store) finish(o *op, res Result, err error) {
	s.release(o.view, o.bytes)
	o.result, o.err = res, err
	o.done <- struct{}{}
}

// finishAll answers proposals that failed alike.
func (s *Store) finishAll(ops []*op, err *kv.Error) {
	end := endNotApplied
	if err.Outcome == kv.OutcomeUnknown {
		end = endUnknown
	}
	s.metrics.proposals.WithLabelValues(end).Add(float64(len(ops)))
	for _, o := range ops {
		own := *err // callers may add to their error
		s.finish(o, Result{}, &own)
	}
}

// Write replicates a strong write of one key, or an atomic batch. A missed condition is not an error; the reply says so.
func (s *Store) Write(ctx context.Context, p kv.PartitionID, w WriteOp) (WriteReply, error) {
	proposal := Proposal{Key: w.Key, Command: encodeCommand(w)}
	for i := range w.Batch {
		if i == 0 {
			proposal.Key = w.Batch[0].Key
			continue
		}
		proposal.More = append(proposal.More, w.Batch[i].Key)
	}
	res, err := s.Propose(ctx, p.Group(), proposal)
	if err != nil {
		return WriteReply{}, err
	}
	reply := *res.Reply.(*WriteReply)
	reply.Acks = res.Acks
	return reply, nil
}

// ReadBarrier returns once this node has applied everything that was committed in the group when it was called. A read
// of the group's state that follows on this node is linearizable among strong operations. A node that does not lead the group
// asks the leader that it knows how far it has to apply.
func (s *Store) ReadBarrier(ctx context.Context, g kv.GroupID) error {
	_, err := s.Peek(ctx, g, false)
	return err
}

// Peek is ReadBarrier, and says what eventual versions a majority of the voters holds, which costs nothing more. With promise
// set, which has an effect on the leader only, it also has that majority promise to take no more eventual writes up to some
// reading of the clock.
func (s *Store) Peek(ctx context.Context, g kv.GroupID, promise bool) (Peeked, error) {
	return s.await(ctx, g, 0, promise)
}

// AwaitApplied returns once this node has applied the group's log up to the index.
func (s *Store) AwaitApplied(ctx context.Context, g kv.GroupID, index uint64) error {
	if v := s.views.get(g); index == 0 || v != nil && v.read().Applied >= index {
		return nil
	}
	_, err := s.await(ctx, g, index, false)
	return err
}

func (s *Store) await(ctx context.Context, g kv.GroupID, index uint64, promise bool) (Peeked, error) {
	v := s.views.get(g)
	if v == nil || v.leaderID() == kv.NoNode {
		return Peeked{}, notLeader(g, kv.NoNode)
	}
	if index == 0 && s.silent(v) {
		return Peeked{}, outOfTouch(g)
	}
	if v.barriers.Add(1) > int64(s.cfg.BarriersMax) {
		v.barriers.Add(-1)
		return Peeked{}, s.overloaded("barriers", "too many reads of this partition are pending")
	}
	b := s.waits.Get().(*barrier)
	b.view, b.index, b.promise, b.answered = v, index, promise, false
	if !s.inbox.post(func(m *mail) bool {
		m.barriers = append(m.barriers, b)
		return true
	}) {
		v.barriers.Add(-1)
		return Peeked{}, stopped(kv.OutcomeNotApplied)
	}
	select {
	case err := <-b.done: // the loop is done with it
		peeked := b.peeked
		b.view, b.peeked = nil, Peeked{}
		s.waits.Put(b)
		return peeked, err
	case <-ctx.Done():
		s.metrics.barriers.WithLabelValues(endTimeout).Inc()
		return Peeked{}, kv.Errorf(kv.CodeDeadlineExceeded, "no majority confirmed the leadership in time: %w", context.Cause(ctx))
	}
}

// openBarriers lets the callers of barriers read.
func (s *Store) openBarriers(all []*barrier) {
	s.metrics.barriers.WithLabelValues(endServed).Add(float64(len(all)))
	for _, b := range all {
		b.answer(nil)
	}
}

// refuseBarriers tells barriers' callers that they may not read here.
func (s *Store) refuseBarriers(all []*barrier, err *kv.Error) {
	s.metrics.barriers.WithLabelValues(endRefused).Add(float64(len(all)))
	for _, b := range all {
		own := *err // callers may add to their error
		b.answer(&own)
	}
}
