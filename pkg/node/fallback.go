package node

import (
	"context"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// degradable runs a request that may be answered at a weaker level, its fallback.
//
// The stronger level has half of the time that is left. A read is given up then. A write is no longer begun then, but one that
// was sent has the whole time: nobody could say that it was not applied, and at the weaker level it would perhaps be
// applied once more. For the same reason only a failure that certainly left nothing behind is followed by the weaker level.
func (n *Node) degradable(ctx context.Context, rt route) (kv.Response, error) {
	weaker := rt.request.Weakened()
	request := *rt.request
	request.Fallback = kv.LevelUnset
	rt.request = &request
	first := ctx
	if deadline, ok := ctx.Deadline(); ok {
		now := time.Now()
		rt.beginBy = now.Add(deadline.Sub(now) / 2)
		if !request.Op.IsWrite() {
			var cancel context.CancelFunc
			first, cancel = context.WithDeadline(ctx, rt.beginBy)
			defer cancel()
		}
	}
	res, err := n.run(first, rt)
	if err == nil || !mayDegrade(&request, err) || ctx.Err() != nil {
		return res, err
	}
	wrt, werr := n.plan(weaker)
	if werr != nil && kv.AsError(werr).Code == kv.CodeLevelFenced {
		return res, err // the prefix does not permit what the request does
	}
	if werr == nil {
		res, werr = n.run(ctx, wrt)
	}
	if werr != nil {
		stronger, e := kv.AsError(err), *kv.AsError(werr)
		e.Detail = "level " + request.Level.String() + ": " + stronger.Detail + "; level " + weaker.Level.String() + ": " + e.Detail
		return kv.Response{}, &e
	}
	n.metrics.degraded.WithLabelValues(request.Level.String(), res.Level.String(), request.Op.String()).Inc()
	return res, nil
}

// mayDegrade reports whether the failure is one for want of replicas, or of time, that certainly left nothing behind. Load that
// was refused is not offered again.
func mayDegrade(r *kv.Request, err error) bool {
	e := kv.AsError(err)
	if e.Outcome != kv.OutcomeNotApplied && r.Op.IsWrite() {
		return false
	}
	switch e.Code {
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady, kv.CodeDeadlineExceeded:
		return true
	default:
		return false
	}
}
