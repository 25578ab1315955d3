package consensus

import (
	"context"
	"errors"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// checksWaitingMax bounds the states that wait to be hashed on a node. Each is a Pebble snapshot, which costs the space
	// of what is overwritten meanwhile. A replica that cannot take one more leaves the check out.
	checksWaitingMax = 16
	// checkChunkBytes is how much of a state is read at once.
	checkChunkBytes = 256 << 10
	// checkPatience is how long a replica goes on reporting, and a leader waits for reports, beyond the time that hashing
	// takes: that of others is not known, and is taken to be up to checkSlowness times the own.
	checkPatience = time.Minute
	checkSlowness = 4
	// checkPauseMin and checkPauseMax bound the pause between two reports.
	checkPauseMin = 50 * time.Millisecond
	checkPauseMax = 2 * time.Second
)

// errSuperseded ends a hashing whose result nobody waits for any more.
var errSuperseded = errors.New("another check has begun")

// hashing is a state that waits to be hashed.
type hashing struct {
	group kv.GroupID
	pos   causal.Position
	snap  *storage.GroupSnapshot
}

// hashStates hashes what is handed to it, one state after the other, until ctx ends.
func (s *Store) hashStates(ctx context.Context, jobs <-chan hashing) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case j := <-jobs:
			s.hashState(ctx, j)
		}
	}
	for {
		select {
		case j := <-jobs:
			j.snap.Close()
		default:
			return
		}
	}
}

func (s *Store) hashState(ctx context.Context, j hashing) {
	start := time.Now()
	v := s.views.get(j.group)
	if mutant.Planted == mutant.StateHashedLate {
		if late, err := s.deps.Engine.PinGroup(j.group); err == nil {
			j.snap.Close()
			j.snap = late
		}
	}
	applied, sum, err := j.snap.Sum(checkChunkBytes, func(n int) error {
		s.metrics.checkBytes.Add(float64(n))
		if v.checking.Load() != j.pos.Index {
			return errSuperseded
		}
		return s.checkPace.wait(ctx, n)
	})
	j.snap.Close()
	if err == nil && (applied.Index != j.pos.Index || applied.Term != j.pos.Term) && mutant.Planted != mutant.StateHashedLate {
		err = errors.New("the state is that of another position")
	}
	took := time.Since(start)
	s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) { l.hashed(j, sum, took, err) })
		return true
	})
}

// report tells the leader what this replica has, until it is known what that means.
func (s *Store) report(ctx context.Context, j hashing, generation, sum uint64, patience time.Duration) {
	request := checkRequest{verb: checkReport, group: j.group, pos: j.pos, sum: sum}
	pause, start := checkPauseMin, time.Now()
	for time.Since(start) < patience {
		if now, _ := s.Sound(j.group); now != generation {
			return // it is known already, or even over; another leader need not find out again
		}
		reply, err := s.atLeader(ctx, &request)
		switch {
		case err != nil || reply.verdict == verdictUndecided || reply.verdict == verdictElsewhere:
		case reply.verdict == verdictDiffers:
			s.inbox.post(func(m *mail) bool {
				m.controls = append(m.controls, func(l *loop) { l.condemned(j.group, j.pos, sum) })
				return true
			})
			return
		default:
			return
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, checkPauseMax)
	}
}

// atLeader makes a request about a check to whoever leads the group, which may be this node.
func (s *Store) atLeader(ctx context.Context, c *checkRequest) (checkReply, error) {
	leader := s.Leader(c.group)
	switch leader {
	case kv.NoNode:
		return checkReply{verdict: verdictElsewhere}, nil
	case s.deps.Self:
		return s.serveCheck(ctx, s.deps.Self, c)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SnapshotPullTimeout)
	defer cancel()
	raw, err := s.deps.Puller.Pull(ctx, leader, c.append(nil))
	if err != nil {
		return checkReply{}, err
	}
	return decodeCheckReply(raw)
}

// serveCheckRequest answers what a peer asked about a check.
func (s *Store) serveCheckRequest(ctx context.Context, from kv.NodeID, request []byte) ([]byte, error) {
	c, err := decodeCheckRequest(request)
	if err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "%w", err)
	}
	reply, err := s.serveCheck(ctx, from, &c)
	if err != nil {
		return nil, kv.Errorf(kv.CodeNotReady, "check of group %d: %w", c.group, err)
	}
	return reply.append(nil), nil
}

// serveCheck has the loop answer a request about a check.
func (s *Store) serveCheck(ctx context.Context, from kv.NodeID, c *checkRequest) (checkReply, error) {
	answer := make(chan checkReply, 1)
	asked := *c // the caller may be gone, and its request another one, by the time the loop looks
	if !s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) { answer <- l.answerCheck(from, &asked) })
		return true
	}) {
		return checkReply{}, stopped(kv.OutcomeNotApplied)
	}
	select {
	case reply := <-answer:
		return reply, nil
	case <-s.ended:
		return checkReply{}, stopped(kv.OutcomeNotApplied)
	case <-ctx.Done():
		return checkReply{}, ctx.Err()
	}
}

// Check has all replicas of the group hash their state at the same position of the log and returns what came of it. It works
// on any node that holds a replica. A check that is under way already is joined. The result is not Done when ctx ended before
// all was known; it is an error when by then no check had begun.
func (s *Store) Check(ctx context.Context, g kv.GroupID) (CheckResult, error) {
	if s.views.get(g) == nil {
		return CheckResult{}, notLeader(g, kv.NoNode)
	}
	var result CheckResult
	request := checkRequest{verb: checkStart, group: g}
	for {
		reply, err := s.atLeader(ctx, &request)
		switch {
		case err != nil || reply.verdict == verdictElsewhere:
			request = checkRequest{verb: checkStart, group: g} // the next leader knows nothing of it
		case reply.verdict == verdictDone && request.verb == checkStart:
			request = checkRequest{verb: checkAsk, group: g, pos: causal.Position{Index: reply.result.Index}}
		case reply.verdict == verdictDone:
			if result = reply.result; result.Done {
				return result, nil
			}
		}
		if sleep(ctx, checkPauseMin) {
			continue
		}
		if result.Index > 0 {
			return result, nil
		}
		return result, kv.Errorf(kv.CodeNoLeader, "no leader of group %d began the check in time: %w", g, errors.Join(err, context.Cause(ctx)))
	}
}

// confirm asks the leader for a check before its time, after this replica was rebuilt.
func (s *Store) confirm(ctx context.Context, g kv.GroupID) {
	pause, start := checkPauseMin, time.Now()
	for time.Since(start) < checkPatience {
		reply, err := s.atLeader(ctx, &checkRequest{verb: checkSoon, group: g})
		if err == nil && reply.verdict == verdictDone || !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, checkPauseMax)
	}
}
