package antientropy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// The watermark of a partition is raised by its first owner, in steps that each replica answers:
//
//	limit    how high may it be, by your clock?
//	promise  take no new attempt from up to M, and have all that you took in storage; whom have you asked to keep hints?
//	(exchanges of the first owner with all others, and again with all but the last)
//	hints    you hold no hint from up to M, and take none; this goes to whoever may hold any
//	commit   everything from up to M is everywhere
//
// Nothing has to be undone: a promise that is not followed by a commit refuses attempts that are too old anyway, and the next
// M is higher.
const (
	stepLimit = 1 + iota
	stepPromise
	stepHints
	stepCommit
)

// errNotNow is returned for a step that has to wait.
var errNotNow = errors.New("antientropy: the watermark has to wait")

// watermarks raises the watermarks of the partitions of which this node is the first owner.
func (s *Service) watermarks(ctx context.Context) error {
	for {
		if sleep(ctx, s.cfg.WatermarkInterval+s.chance(s.cfg.WatermarkInterval/4)) != nil {
			return nil
		}
		for _, o := range s.deps.Owned() {
			if o.Owners[0] != s.deps.Self {
				continue
			}
			switch err := s.raise(ctx, o); {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				s.metrics.watermarks.WithLabelValues("waiting").Inc()
				s.deps.Logger.Debug("a repair watermark stays where it is", "partition", o.Partition, "error", err)
			default:
				s.metrics.watermarks.WithLabelValues("raised").Inc()
			}
		}
	}
}

// raise raises the watermark of a partition as far as all replicas allow. Any of them that does not answer keeps it where
// it is.
func (s *Service) raise(ctx context.Context, o Owned) error {
	mark, err := s.limitOf(ctx, o)
	if err != nil {
		return err
	}
	if mark <= s.deps.Engine.State().Repair(o.Partition).Committed {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(o.Owners), func(id kv.NodeID) bool { return id == s.deps.Self })
	if err := s.promise(ctx, o.Partition, mark); err != nil {
		return err
	}
	asked := s.asked(o.Partition)
	if err := s.everywhere(ctx, o, others, stepPromise, mark, asked.add); err != nil {
		return err
	}
	for pass := range 2 {
		for _, to := range others[:max(0, len(others)-pass)] {
			if err := s.compare(ctx, s.newExchange(o, to)); err != nil {
				return err
			}
		}
	}
	holders := slices.Clone(others)
	for _, id := range s.deps.Members() {
		if id != s.deps.Self && !slices.Contains(holders, id) && asked.may(id) {
			holders = append(holders, id)
		}
	}
	if err := s.hintsSettled(ctx, o.Partition, mark); err != nil {
		return err
	}
	if err := s.everywhere(ctx, o, holders, stepHints, mark, nil); err != nil {
		return err
	}
	if err := s.everywhere(ctx, o, others, stepCommit, mark, nil); err != nil {
		return err
	}
	return s.commit(o.Partition, mark)
}

// limitOf returns the highest mark that all replicas allow.
func (s *Service) limitOf(ctx context.Context, o Owned) (causal.HLC, error) {
	lowest, err := s.limit(o.Partition)
	if err != nil {
		return 0, err
	}
	for _, to := range o.Owners {
		if to == s.deps.Self {
			continue
		}
		reply, err := s.step(ctx, o, to, stepLimit, 0)
		if err != nil {
			return 0, err
		}
		theirs, rest, err := causal.DecodeHLC(reply)
		if err != nil || len(rest) > 0 {
			return 0, fmt.Errorf("%w: limit of a watermark", ErrPayload)
		}
		lowest = min(lowest, theirs)
	}
	return lowest, nil
}

// everywhere takes a step on all of the nodes and hands their replies to took, if that is set. All are asked, whatever the
// others say.
func (s *Service) everywhere(
	ctx context.Context, o Owned, nodes []kv.NodeID, step byte, mark causal.HLC, took func(reply []byte) error,
) error {
	return s.forAll(len(nodes), func(i int) error {
		reply, err := s.step(ctx, o, nodes[i], step, mark)
		if err == nil && took != nil {
			err = took(reply)
		}
		return err
	})
}

func (s *Service) step(ctx context.Context, o Owned, to kv.NodeID, step byte, mark causal.HLC) ([]byte, error) {
	h := header{askWatermark, o.Partition, o.Epoch, s.standing(o.Partition)}
	return s.ask(ctx, to, causal.AppendHLC(append(h.append(nil), step), mark))
}

// answerWatermark takes a step of the protocol. Only the first owner of the partition leads it; hints any node may have.
func (s *Service) answerWatermark(ctx context.Context, from kv.NodeID, h header, body []byte) ([]byte, error) {
	r := reader{b: body}
	step := r.bytes(1, "step")[0]
	mark := causal.HLC(r.uint64("mark"))
	if r.err != nil || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: step of a watermark", ErrPayload)
	}
	if step == stepHints {
		return nil, s.hintsSettled(ctx, h.partition, mark)
	}
	o, err := s.owned(h, from)
	if err != nil {
		return nil, err
	}
	if o.Owners[0] != from {
		return nil, fmt.Errorf("%w: node %d does not lead the watermark of partition %d", ErrNotOwner, from, o.Partition)
	}
	switch step {
	case stepLimit:
		limit, err := s.limit(o.Partition)
		return causal.AppendHLC(nil, limit), err
	case stepPromise:
		if err := s.promise(ctx, o.Partition, mark); err != nil {
			return nil, err
		}
		return s.asked(o.Partition).append(nil), nil
	case stepCommit:
		return nil, s.commit(o.Partition, mark)
	default:
		return nil, fmt.Errorf("%w: step %d of a watermark", ErrPayload, step)
	}
}

// limit returns the highest mark that this replica would promise: so far behind its clock that no request is under way
// which is older. Its clock is past that for good, so that it never stamps anything at or below a promise.
func (s *Service) limit(p kv.PartitionID) (causal.HLC, error) {
	if r := s.deps.Engine.State().Repair(p); r.Healing || r.Quarantined {
		return 0, fmt.Errorf("%w: the replica on node %d has lost rows", errNotNow, s.deps.Self)
	}
	now, err := s.deps.Now()
	if err != nil {
		return 0, err
	}
	return causal.MakeHLC(now.Millis()-s.cfg.WatermarkLag.Milliseconds(), 0), nil
}

// promise durably refuses new attempts from up to the mark, and returns once all that was accepted before is in storage.
func (s *Service) promise(ctx context.Context, p kv.PartitionID, mark causal.HLC) error {
	limit, err := s.limit(p)
	if err != nil {
		return err
	}
	if mark > limit {
		return fmt.Errorf("%w: mark %s is above the limit %s of node %d", errNotNow, mark, limit, s.deps.Self)
	}
	if err := s.deps.Engine.ChangeRepair(p, func(r *storage.RepairState) { r.Promised = max(r.Promised, mark) }); err != nil {
		return err
	}
	return s.deps.Replica.Flush(ctx, p)
}

// hintsSettled fails while this node holds hints of the partition from up to the mark.
func (s *Service) hintsSettled(ctx context.Context, p kv.PartitionID, mark causal.HLC) error {
	if s.deps.Hints == nil {
		return nil
	}
	settled, err := s.deps.Hints.Settled(ctx, p, mark)
	if err == nil && !settled {
		err = fmt.Errorf("%w: node %d holds hints of partition %d", errNotNow, s.deps.Self, p)
	}
	return err
}

// commit raises the watermark.
func (s *Service) commit(p kv.PartitionID, mark causal.HLC) error {
	refused := false
	err := s.deps.Engine.ChangeRepair(p, func(r *storage.RepairState) {
		if refused = r.Promised < mark || r.Healing || r.Quarantined; !refused {
			r.Committed = max(r.Committed, mark)
			r.HintsAnywhere = false // this replica said so when it promised, and all members were asked
		}
	})
	if err == nil && !refused && s.deps.Hints != nil {
		s.deps.Hints.Strike(p, mark)
	}
	if err == nil && refused {
		err = fmt.Errorf("%w: node %d has not promised %s, or has lost rows since", errNotNow, s.deps.Self, mark)
	}
	return err
}
