package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
)

// StatusDocument is GET /admin/status.
type StatusDocument struct {
	Node       string            `json:"node"`
	NodeID     kv.NodeID         `json:"node_id"`
	ClusterID  string            `json:"cluster_id"`
	Epoch      kv.Epoch          `json:"epoch"`
	Draining   bool              `json:"draining"`
	Partitions int               `json:"partitions"`
	Quorum     QuorumDocument    `json:"quorum"`
	Disk       DiskDocument      `json:"disk"`
	Ready      map[string]string `json:"ready"` // level → "ok" or why not
	MetaLeader string            `json:"meta_leader"`
	Nodes      []NodeDocument    `json:"nodes"`
	// Groups lists the partitions led by each node, as far as this node knows.
	Leaders map[string]int `json:"leaders"`
	// Hints is what this node keeps for others that could not take it.
	Hints []HintDocument `json:"hints"`
}

// QuorumDocument is the cluster's default N, R and W.
type QuorumDocument struct {
	N int `json:"n"`
	R int `json:"r"`
	W int `json:"w"`
}

// NodeDocument is one member in GET /admin/nodes.
type NodeDocument struct {
	ID         kv.NodeID `json:"id"`
	Name       string    `json:"name"`
	Alive      bool      `json:"alive"`
	Registered bool      `json:"registered"`
	HTTP       string    `json:"http"`
	GRPC       string    `json:"grpc"`
	Gossip     string    `json:"gossip"`
	RESP       string    `json:"resp,omitempty"`
	Zone       string    `json:"zone,omitempty"`
	DC         string    `json:"dc,omitempty"`
}

// RingDocument is GET /admin/ring.
type RingDocument struct {
	Epoch      kv.Epoch       `json:"epoch"`
	Hash       string         `json:"hash"`
	Replicas   int            `json:"replicas"`
	Partitions []RingEntry    `json:"partitions"`
	Owned      map[string]int `json:"owned"` // node → replicas it holds
}

// RingEntry is the preference list of one partition.
type RingEntry struct {
	Partition kv.PartitionID `json:"partition"`
	Replicas  []string       `json:"replicas"`
}

// PartitionDocument is one partition in GET /admin/partitions, as this node sees it.
type PartitionDocument struct {
	Partition  kv.PartitionID `json:"partition"`
	Group      kv.GroupID     `json:"group"`
	Replicas   []string       `json:"replicas"`
	Local      bool           `json:"local"` // whether this node holds a replica
	Leader     string         `json:"leader,omitempty"`
	State      string         `json:"state,omitempty"`
	Term       uint64         `json:"term,omitempty"`
	Commit     uint64         `json:"commit_index,omitempty"`
	Applied    uint64         `json:"applied_index,omitempty"`
	FirstIndex uint64         `json:"first_index,omitempty"`
	LastIndex  uint64         `json:"last_index,omitempty"`
	// Lag is the number of entries that this replica knows committed and has not applied.
	Lag      uint64 `json:"lag"`
	LogBytes uint64 `json:"log_bytes,omitempty"`
	// Snapshots that followers took from the local replica, and that were installed in it, since the node started.
	SnapshotsSent     uint64 `json:"snapshots_sent,omitempty"`
	SnapshotsReceived uint64 `json:"snapshots_received,omitempty"`
	// Repair is that of the eventual lane; absent where there is no local replica.
	Repair *RepairDocument `json:"repair,omitempty"`
	// Quarantine says why the local replica is not to be trusted and being rebuilt; it is empty for one that is sound.
	Quarantine string `json:"quarantine,omitempty"`
	// Check is the last comparison of the replicas that this node led; nil when there was none.
	Check *CheckDocument `json:"check,omitempty"`
}

// CheckDocument is POST /admin/partitions/{id}/check: whether the partition's replicas hold the same state of the strong lane.
type CheckDocument struct {
	Partition kv.PartitionID `json:"partition"`
	// Index is the entry at which the replicas were compared.
	Index uint64 `json:"index"`
	// Done is false when not all was known in time.
	Done bool `json:"done"`
	// Agree hold what a majority holds, Differ something else, and are quarantined and rebuilt. Split lists the replicas that
	// were compared when no majority agrees, so that nobody can say who is right. Of Silent nothing is known.
	Agree  []string `json:"agree"`
	Differ []string `json:"differ"`
	Split  []string `json:"split"`
	Silent []string `json:"silent"`
}

// StatsDocument is GET /api/stats: the sums, and each group.
type StatsDocument struct {
	State   string `json:"state"` // of this node: "leader" when it leads any partition
	Leader  string `json:"leader"`
	Term    uint64 `json:"term"`
	Commit  uint64 `json:"commit_index"`
	Applied uint64 `json:"applied_index"`
	Lag     uint64 `json:"lag"`
	Leads   int    `json:"leads"` // the number of groups that this node leads
	// LogBytes is the size of the logs of all groups, SnapshotsSent and SnapshotsReceived the number of snapshots.
	LogBytes          uint64 `json:"log_bytes"`
	SnapshotsSent     uint64 `json:"snapshots_sent"`
	SnapshotsReceived uint64 `json:"snapshots_received"`
	// Quarantined is the number of replicas on this node that are not to be trusted and being rebuilt, Violations that of the
	// consistency violations which checks led by this node have found since it started.
	Quarantined int                 `json:"quarantined"`
	Violations  uint64              `json:"consistency_violations"`
	Groups      []PartitionDocument `json:"groups"`
}

// Status describes the node and the cluster as this node sees it.
func (n *Node) Status() StatusDocument {
	st := n.machine.State()
	doc := StatusDocument{
		Node: n.cfg.Name, NodeID: n.id.Node, ClusterID: fmt.Sprintf("%016x", st.Genesis.ClusterID),
		Epoch: st.Map.Epoch, Draining: n.draining.Load(), Partitions: len(st.Map.Partitions),
		Quorum: QuorumDocument{N: n.cfg.Quorum.N, R: n.cfg.Quorum.R, W: n.cfg.Quorum.W},
		Disk:   n.diskDocument(), Ready: map[string]string{}, Nodes: n.Nodes(), Leaders: map[string]int{}, Hints: n.hintDocuments(),
		MetaLeader: n.leaderName(n.strong.Leader(kv.MetaGroup)),
	}
	for _, l := range []kv.Level{kv.LevelStrong, kv.LevelEventual, kv.LevelLocal} {
		doc.Ready[l.String()] = "ok"
		if err := n.Ready(l); err != nil {
			doc.Ready[l.String()] = kv.AsError(err).Detail
		}
	}
	for p := range st.Map.Partitions {
		if name := n.leaderName(n.strong.Leader(kv.PartitionID(p).Group())); name != "" {
			doc.Leaders[name]++
		}
	}
	return doc
}

// Nodes lists the members.
func (n *Node) Nodes() []NodeDocument {
	st := n.machine.State()
	out := make([]NodeDocument, 0, len(n.id.Genesis.InitialMembers))
	for i, name := range n.id.Genesis.InitialMembers {
		id := kv.NodeID(i + 1)
		m, _ := st.Member(id)
		out = append(out, NodeDocument{
			ID: id, Name: name, Alive: n.alive(id), Registered: m.Registered(), HTTP: m.HTTP, GRPC: m.GRPC,
			Gossip: m.Gossip, RESP: m.RESP, Zone: m.Zone, DC: m.DC,
		})
	}
	return out
}

// Ring describes who holds what.
func (n *Node) Ring() RingDocument {
	st := n.machine.State()
	doc := RingDocument{Epoch: st.Map.Epoch, Hash: "xxhash64", Replicas: st.Map.Replicas, Owned: map[string]int{}}
	for p := range st.Map.Partitions {
		names := n.names(st.Map.Owners(kv.PartitionID(p)))
		for _, name := range names {
			doc.Owned[name]++
		}
		doc.Partitions = append(doc.Partitions, RingEntry{Partition: kv.PartitionID(p), Replicas: names})
	}
	return doc
}

// Partitions describes each partition and the state of its local replica.
func (n *Node) Partitions() []PartitionDocument {
	st := n.machine.State()
	out := make([]PartitionDocument, 0, len(st.Map.Partitions))
	for p := range st.Map.Partitions {
		out = append(out, n.partition(st, kv.PartitionID(p)))
	}
	return out
}

// Partition describes one partition; false when there is none of this number.
func (n *Node) Partition(p kv.PartitionID) (PartitionDocument, bool) {
	st := n.machine.State()
	if int(p) >= len(st.Map.Partitions) {
		return PartitionDocument{}, false
	}
	return n.partition(st, p), true
}

func (n *Node) partition(st *meta.State, p kv.PartitionID) PartitionDocument {
	doc := PartitionDocument{Partition: p, Group: p.Group(), Replicas: n.names(st.Map.Owners(p))}
	if gs, ok := n.strong.Status(p.Group()); ok {
		n.fillGroup(&doc, gs)
	}
	if owners := st.Map.Owners(p); slices.Contains(owners, n.id.Node) {
		doc.Repair = n.repairOf(p, owners)
	}
	return doc
}

func (n *Node) fillGroup(doc *PartitionDocument, gs consensus.GroupStatus) {
	doc.Local, doc.State, doc.Leader = true, gs.State, n.leaderName(gs.Leader)
	doc.Term, doc.Commit, doc.Applied = gs.Term, gs.Commit, gs.Applied
	doc.Lag = gs.Commit - min(gs.Commit, gs.Applied)
	doc.FirstIndex, doc.LastIndex, doc.LogBytes = gs.FirstIndex, gs.LastIndex, gs.LogBytes
	doc.SnapshotsSent, doc.SnapshotsReceived = gs.SnapshotsSent, gs.SnapshotsReceived
	doc.Quarantine = gs.Quarantine
	if gs.Check.Index > 0 && gs.Leader == n.id.Node {
		check := n.checkDocument(doc.Partition, gs.Check)
		doc.Check = &check
	}
}

func (n *Node) checkDocument(p kv.PartitionID, r consensus.CheckResult) CheckDocument {
	return CheckDocument{
		Partition: p, Index: r.Index, Done: r.Done,
		Agree: n.names(r.Agree), Differ: n.names(r.Differ), Split: n.names(r.Split), Silent: n.names(r.Silent),
	}
}

// checkAnswerTime is left of a check's deadline for its answer.
const checkAnswerTime = 500 * time.Millisecond

// CheckPartition has the replicas of a partition compare their state and says what came of it by the time ctx ends; false
// when there is no such partition, an error when the check could not begin.
func (n *Node) CheckPartition(ctx context.Context, p kv.PartitionID) (CheckDocument, bool, error) {
	m := &n.machine.State().Map
	if int(p) >= len(m.Partitions) {
		return CheckDocument{}, false, nil
	}
	if !n.gate.enter() {
		return CheckDocument{}, true, kv.Errorf(kv.CodeNotReady, "node %s is stopping", n.cfg.Name)
	}
	defer n.gate.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		// Whoever asks is to hear what is known by then, for instance that a node is silent because it is dead.
		var early context.CancelFunc
		ctx, early = context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/4, checkAnswerTime)))
		defer early()
	}
	stop := context.AfterFunc(n.gate.closing, cancel)
	defer stop()
	if !m.Owns(p, n.id.Node) {
		return CheckDocument{}, true, kv.Errorf(kv.CodeNotReady, "node %s holds no replica of partition %d; ask one of %v",
			n.cfg.Name, p, n.names(m.Owners(p)))
	}
	result, err := n.strong.Check(ctx, p.Group())
	return n.checkDocument(p, result), true, err
}

// Stats sums up this node's groups.
func (n *Node) Stats() StatsDocument {
	doc := StatsDocument{Violations: n.strong.Violations(), State: "follower", Leader: n.leaderName(n.strong.Leader(kv.MetaGroup)), Groups: n.Partitions()}
	for _, g := range doc.Groups {
		if g.Leader == n.cfg.Name {
			doc.State = "leader"
			doc.Leads++
		}
		doc.Term = max(doc.Term, g.Term)
		doc.Commit += g.Commit
		doc.Applied += g.Applied
		doc.Lag += g.Lag
		doc.LogBytes += g.LogBytes
		doc.SnapshotsSent += g.SnapshotsSent
		doc.SnapshotsReceived += g.SnapshotsReceived
		if g.Quarantine != "" {
			doc.Quarantined++
		}
	}
	return doc
}

// Ready reports whether the node can serve a level, LevelUnset meaning every level. The error says why not.
func (n *Node) Ready(level kv.Level) error {
	st := n.machine.State()
	switch {
	case n.draining.Load():
		return kv.Errorf(kv.CodeNotReady, "the node is stopping")
	case !st.Ready():
		return kv.Errorf(kv.CodeNotReady, "the cluster has no partition map yet")
	}
	if level == kv.LevelStrong || level == kv.LevelBounded || level == kv.LevelUnset { // a proof needs a leader, too
		if err := n.readyStrong(); err != nil {
			return err
		}
	}
	if level == kv.LevelEventual || level == kv.LevelUnset {
		return n.readyEventual()
	}
	return nil
}

// readyStrong needs a leader for each partition that this node replicates.
func (n *Node) readyStrong() error {
	st := n.machine.State()
	for p := range st.Map.Partitions {
		id := kv.PartitionID(p)
		if st.Map.Owns(id, n.id.Node) && n.strong.Leader(id.Group()) == kv.NoNode {
			return kv.Errorf(kv.CodeNoLeader, "partition %d has no leader at present", p)
		}
	}
	return nil
}

// readyEventual needs as many live replicas of each partition as the default quorum asks for.
func (n *Node) readyEventual() error {
	st := n.machine.State()
	for p := range st.Map.Partitions {
		alive := 0
		owners := st.Map.Owners(kv.PartitionID(p))
		for _, o := range owners {
			if n.alive(o) {
				alive++
			}
		}
		if need := min(max(n.cfg.Quorum.W, n.cfg.Quorum.R), len(owners)); alive < need {
			e := kv.Errorf(kv.CodeQuorumUnavailable, "partition %d has %d live replicas of the %d that the default quorum needs", p, alive, need)
			e.Required, e.Alive = need, alive
			return e
		}
	}
	return nil
}

func (n *Node) leaderName(id kv.NodeID) string {
	if id == kv.NoNode {
		return ""
	}
	return n.NodeName(id)
}

func (n *Node) names(ids []kv.NodeID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = n.NodeName(id)
	}
	return out
}

// Policies lists the policies in force, sorted by prefix.
func (n *Node) Policies() []kv.Policy { return n.machine.State().Policies }

// SetPolicy sets the policy of a prefix and waits until this node has applied it. The error is a *kv.Error.
func (n *Node) SetPolicy(ctx context.Context, p kv.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if _, err := n.resolvers.Resolver(p.Resolver, p.Expr); err != nil {
		return err
	}
	return n.changePolicies(ctx, func(ctx context.Context) (uint64, error) { return n.metadata.PutPolicy(ctx, p) })
}

// DeletePolicy returns a prefix to the next shorter one and waits until this node has applied that.
func (n *Node) DeletePolicy(ctx context.Context, prefix []byte) error {
	return n.changePolicies(ctx, func(ctx context.Context) (uint64, error) { return n.metadata.DeletePolicy(ctx, prefix) })
}

// changePolicies makes a change, trying again while group 0 is between leaders: setting a policy twice is setting it
// once. Then it waits for this node's own replica, so that whoever asked can use what they set.
func (n *Node) changePolicies(ctx context.Context, change func(context.Context) (uint64, error)) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.RequestTimeout)
	defer cancel()
	epoch, err := change(ctx)
	for err != nil {
		if !kv.AsError(err).Retryable || sleep(ctx, retryInterval) != nil {
			return err
		}
		epoch, err = change(ctx)
	}
	for n.machine.State().PolicyEpoch < epoch {
		if sleep(ctx, policyPoll) != nil {
			return nil // applied by group 0; this node merely lags
		}
	}
	return nil
}

const policyPoll = 2 * time.Millisecond

// sleep waits for d or until ctx is done, whose error it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Self returns this node's name.
func (n *Node) Self() string { return n.cfg.Name }

// PartitionCount returns the number of the cluster's partitions, 0 while this node has no map.
func (n *Node) PartitionCount() int { return len(n.machine.State().Map.Partitions) }
