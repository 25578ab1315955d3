package quorum

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// scanRowsMin is the fewest rows that a listing asks for at once: deleted keys are rows too.
	scanRowsMin = 64
	// scanHedge is how many hedge delays a replica has to answer a scan before the others are asked as well.
	scanHedge = 10
)

// Scanner is how a coordinator lists what other replicas hold. Scan returns at the latest when ctx is done.
type Scanner interface {
	Scan(ctx context.Context, to kv.NodeID, r ScanRequest) (ScanReply, error)
}

// list coordinates a listing of one partition: each page is merged from R replicas, as each key would be by a read. It
// sends no repairs: a listing would find too many at once.
func (c *Coordinator) list(ctx context.Context, call *Call) (kv.Response, error) {
	if call.Request.Level == kv.LevelLocal {
		call.Quorum.N = 1
	}
	nodes, alive := c.participants(call)
	if alive < call.Quorum.R {
		return kv.Response{}, tooFewAlive(call.Quorum.R, alive, len(nodes))
	}
	q := call.Request.List
	res := kv.Response{Found: true, Level: call.Request.Level, Acks: call.Quorum.R, Coordinator: c.deps.Self}
	ask := ScanRequest{Partition: call.Partition, Epoch: call.Epoch, Prefix: q.Prefix, After: q.After}
	size := 0
	now, err := c.deps.Clock.Now()
	if err != nil {
		return kv.Response{}, kv.Errorf(kv.CodeInternal, "it could not be told what has expired: %w", err)
	}
	for {
		ask.Limit = min(max(q.Limit-len(res.Listed)+1, scanRowsMin), kv.ListItemsMax+1)
		s := &scanOp{c: c, call: call, ask: ask, alive: alive, plan: newReadPlan(nodes, call.Quorum.R)}
		parts, from, err := s.run(ctx)
		if err != nil {
			return kv.Response{}, err
		}
		for _, node := range from {
			if !slices.Contains(res.Replicas, node) {
				res.Replicas = append(res.Replicas, node)
			}
		}
		page, more := mergeScans(parts, ask.Limit)
		if call.Request.Level == kv.LevelBounded && slices.ContainsFunc(page, func(row scanned) bool { return row.lags(row.set) }) {
			return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "%w", errLags)
		}
		items, err := listItems(page, call.ResolverOf, q.KeysOnly, now)
		if err != nil {
			return kv.Response{}, err
		}
		for i := range items {
			size += items[i].Bytes()
			if len(res.Listed) == q.Limit || len(res.Listed) > 0 && size > kv.ListBytesMax {
				res.More = true
				return res, nil
			}
			res.Listed = append(res.Listed, items[i])
		}
		if !more {
			return res, nil
		}
		ask.After = page[len(page)-1].key
	}
}

// scanOp asks for one page of a listing. It is the read of a page, with goroutines in the place of callbacks: a scan
// takes long enough not to notice.
type scanOp struct {
	c     *Coordinator
	call  *Call
	ask   ScanRequest
	alive int
	plan  readPlan
	cause error
}

// scanAnswer is one replica's.
type scanAnswer struct {
	node  kv.NodeID
	reply ScanReply
	err   error
}

func (s *scanOp) run(ctx context.Context) (parts []ScanReply, from []kv.NodeID, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var scans sync.WaitGroup
	defer scans.Wait()
	defer cancel()
	answers := make(chan scanAnswer, len(s.plan.order))
	start := func(nodes []kv.NodeID) {
		for _, node := range nodes {
			scans.Go(func() {
				reply, err := s.scan(ctx, node)
				answers <- scanAnswer{node, reply, err}
			})
		}
	}
	start(s.plan.start(s.call.Quorum.R))
	hedge := time.NewTimer(scanHedge * s.c.cfg.HedgeDelay)
	defer hedge.Stop()
	for {
		switch s.plan.votes.Outcome() {
		case Met:
			return parts, from, nil
		case Unreachable:
			if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
				return nil, nil, s.failed(kv.CodeDeadlineExceeded) // the scans ended with it
			}
			return nil, nil, s.failed(kv.CodeQuorumUnavailable)
		case Pending:
		}
		select {
		case a := <-answers:
			if a.err == nil && a.reply.Healing && !s.call.takesHealing() {
				a.err = errUncounted(s.ask.Partition, a.node)
			}
			if a.err != nil {
				s.cause = clearest(s.cause, a.err)
				s.plan.failed(a.node)
				start(s.plan.rest())
				continue
			}
			s.plan.answered(a.node)
			parts, from = append(parts, a.reply), append(from, a.node)
		case <-hedge.C:
			s.c.metrics.hedges.Inc()
			start(s.plan.rest())
		case <-ctx.Done():
			s.cause = ctx.Err()
			return nil, nil, s.failed(kv.CodeDeadlineExceeded)
		}
	}
}

func (s *scanOp) scan(ctx context.Context, node kv.NodeID) (ScanReply, error) {
	if node == s.c.deps.Self {
		return s.c.deps.Store.Scan(s.ask)
	}
	reply, err := s.c.deps.Scanner.Scan(ctx, node, s.ask)
	if err == nil && reply.More && len(reply.Rows) == 0 {
		return ScanReply{}, errors.New("a part of a listing that goes on nowhere")
	}
	return reply, err
}

func (s *scanOp) failed(code kv.Code) error {
	acked, required := s.plan.votes.Acked(), s.call.Quorum.R
	e := kv.Errorf(code, "%d of the %d replicas needed listed partition %d: %w", acked, required, s.call.Partition, s.cause)
	e.Outcome = kv.OutcomeNotApplied
	e.Required, e.Alive, e.Acked = required, s.alive, acked
	return e
}
