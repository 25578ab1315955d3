package membership

import (
	"encoding/json"
	"fmt"

	"github.com/hashicorp/memberlist"
)

// delegate is the Membership as memberlist sees it. None of its methods blocks.
type delegate struct{ m *Membership }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
)

// NodeMeta returns what this node says about itself.
func (d delegate) NodeMeta(int) []byte {
	d.m.mu.RLock()
	defer d.m.mu.RUnlock()
	return d.m.self
}

// NotifyMsg ignores user messages: nobody sends any.
func (d delegate) NotifyMsg([]byte) {}

// GetBroadcasts sends none.
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState tells the other side of a push-pull how far this node is.
func (d delegate) LocalState(bool) []byte {
	return progress{epoch: d.m.deps.Epoch(), hlc: d.m.deps.HLC()}.encode()
}

// MergeRemoteState takes the other side's progress.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	p, ok := decodeProgress(b)
	if !ok {
		d.m.deps.Logger.Warn("gossip: a member sent a state of another version", "bytes", len(b))
		return
	}
	if d.m.deps.OnEpoch != nil {
		d.m.deps.OnEpoch(p.epoch)
	}
	if d.m.deps.OnHLC != nil {
		d.m.deps.OnHLC(p.hlc)
	}
}

// NotifyJoin notes a member that is alive.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.note(n, true, "joined") }

// NotifyUpdate notes what a member says anew.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.note(n, true, "") }

// NotifyLeave notes a member that died or left.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.note(n, false, "is gone") }

func (d delegate) note(n *memberlist.Node, alive bool, news string) {
	var meta Meta
	err := json.Unmarshal(n.Meta, &meta)
	if err != nil {
		d.m.deps.Logger.Warn("gossip: a member's description cannot be read", "member", n.Name, "error", err)
	}
	d.m.mu.Lock()
	if err == nil {
		d.m.members[n.Name] = Member{Name: n.Name, Meta: meta, Alive: alive}
	} else if known, ok := d.m.members[n.Name]; ok && !alive {
		// Whatever it says about itself, it is gone.
		known.Alive = false
		d.m.members[n.Name] = known
	}
	d.m.mu.Unlock()
	if news != "" {
		d.m.deps.Logger.Info("gossip: member "+news, "member", n.Name, "address", n.Address())
	}
}

// NotifyAlive keeps out members of another cluster, which would otherwise take over the names of dead ones of this. As
// long as either side does not know its cluster yet, nobody is kept out.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	var meta Meta
	if json.Unmarshal(n.Meta, &meta) != nil {
		return nil // note reports it
	}
	d.m.mu.RLock()
	cluster := d.m.cluster
	d.m.mu.RUnlock()
	if cluster != 0 && meta.Cluster != 0 && meta.Cluster != cluster {
		return fmt.Errorf("it belongs to cluster %016x and this node to %016x; check --join on both", meta.Cluster, cluster)
	}
	return nil
}

// NotifyConflict reports that two nodes use one name. memberlist keeps the one it knew.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.m.deps.Logger.Error("gossip: two nodes use one name; the newcomer is ignored: give every node its own --name",
		"name", existing.Name, "known", existing.Address(), "newcomer", other.Address())
}
