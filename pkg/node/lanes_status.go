package node

import (
	"context"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
)

// PolicyState says how far the keys of the policy with exactly this prefix are from the lanes that it names: nothing if they are there,
// else one switch for each part of them that is not, with what the leader of group 0 knows of it. Without that leader only the modes
// are known.
func (n *Node) PolicyState(ctx context.Context, prefix []byte) []kv.LaneSwitch {
	return n.progressOf(ctx, n.machine.State().SwitchOf(prefix))
}

// Switches lists all switches that are under way, those of prefixes without a policy included.
func (n *Node) Switches(ctx context.Context) []kv.LaneSwitch {
	return n.progressOf(ctx, n.machine.State().Passing())
}

func (n *Node) progressOf(ctx context.Context, fences []meta.Fence) []kv.LaneSwitch {
	if len(fences) == 0 {
		return nil
	}
	var known []kv.LaneSwitch
	if leader := n.strong.Leader(kv.MetaGroup); leader != kv.NoNode {
		ctx, cancel := context.WithTimeout(ctx, laneAskTimeout)
		defer cancel()
		if reply, err := n.askLanes(ctx, leader, laneAsk{Kind: laneProgress}); err == nil {
			known = reply.Progress
		}
	}
	out := make([]kv.LaneSwitch, len(fences))
	for i, f := range fences {
		out[i] = kv.LaneSwitch{Prefix: f.Prefix, Epoch: f.Epoch, Mode: string(f.Mode), Phase: kv.SwitchFencing}
		if at := slices.IndexFunc(known, func(p kv.LaneSwitch) bool { return p.Epoch == f.Epoch && string(p.Prefix) == string(f.Prefix) }); at >= 0 {
			out[i] = known[at]
		}
	}
	return out
}
