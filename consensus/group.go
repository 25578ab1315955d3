package consensus

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// group is one Raft group as the loop keeps it. Only the loop touches it once it was adopted.
type group struct {
	id      kv.GroupID
	rn      *raft.RawNode
	log     *logStore
	machine Machine
	view    *view

	// conf is the configuration as of applied; confRow is its encoding in the applied row, and voters are its voters in
	// the order of preference, shared with readers of the view.
	conf    *pb.ConfState
	confRow []byte
	voters  []kv.NodeID
	applied causal.Position

	// term, state and leader are what the last Ready said.
	term   uint64
	state  raft.StateType
	leader kv.NodeID
	// homeAt is the tick from which on this node, leading the group, hands it back to its preferred voter; homeTries
	// counts the attempts since it leads.
	homeAt    uint64
	homeTries int
	// heard is when peers were heard of since the leader was elected, and touched the tick of the last sign of a majority, or of
	// the leader.
	heard   []heardOf
	touched uint64
	// transferring is true while Raft hands the leadership over and drops proposals.
	transferring bool

	// queue holds proposals that are in no entry yet.
	queue    []*op
	pending  pendings
	barriers barriers
	// peeks are the read rounds that a leader collects answers for, its own and its followers'.
	peeks peeks
	// ahead are entries that were decoded before they are applied.
	ahead ahead

	// lastSync is the sequence number of the newest batch that holds something of this group which must be durable
	// before its answers leave.
	lastSync uint64
	// ready is what the present iteration has to persist and apply.
	ready groupReady

	// plan is a truncation of the log that waits for its time, and peers is what a leader knows of the others for it.
	plan  *truncation
	peers map[kv.NodeID]follower
	// sends are the snapshots on their way to followers; after a failure there is none before the tick sendAfter.
	sends     map[kv.NodeID]send
	sendAfter uint64
	// offer is a snapshot that the leader offers, install one that is being installed, and resumed what is left to do after
	// that. At most one of them is set.
	offer   *offer
	install *installing
	resumed *groupReady
	// sent and received count snapshots.
	sent, received uint64

	// check is the last comparison of the replicas' states. A leader proposes the next one at the tick checkAt, 0 for never,
	// after that at the tick checkedAt, and hands no leadership to the suspects, who were found to differ.
	check     *stateCheck
	checkAt   uint64
	checkedAt uint64
	suspects  map[kv.NodeID]bool
	// quarantine is set while S of this replica is not to be trusted.
	quarantine *quarantine

	// eager is true while this node, as the group's preferred voter, campaigns without waiting for timeouts.
	eager      bool
	eagerSince uint64

	// dirty and busy say that the group is on the loop's list of that name.
	dirty, busy bool
	// stopped is why the replica takes no part any more.
	stopped error
}

// groupReady is what one Ready of a group leaves to be done after its messages were handed out.
type groupReady struct {
	hard      *pb.HardState // of a Ready that waits for its snapshot; otherwise the log has it
	entries   []*pb.Entry
	responses []*pb.Message // of the append
	append    bool          // there is something to persist

	committed []*pb.Entry
	applied   []*pb.Message // responses of the apply
}

// openGroup reads a group from disk.
func (s *Store) openGroup(id kv.GroupID) (g *group, err error) {
	machine, err := s.machineOf(id)
	if err != nil {
		return nil, err
	}
	log, err := openLog(id, s.deps.Engine.Log(), s.cfg.WindowBytes, s.cfg.sizeGrain())
	if err != nil {
		return nil, fmt.Errorf("consensus: open group %d: %w", id, err)
	}
	g = &group{
		id: id, log: log, machine: machine, view: &view{id: id}, applied: log.applied, term: log.hard.Term,
		eager: len(log.conf.Voters) > 0 && log.conf.Voters[0] == uint64(s.deps.Self),
	}
	g.setConf(log.conf)
	why, isolated, err := s.deps.Engine.Log().Quarantine(id)
	if err != nil {
		return nil, fmt.Errorf("consensus: open group %d: %w", id, err)
	}
	if isolated {
		g.quarantine, g.eager = &quarantine{why: string(why)}, false
		g.view.trust.Store(1)
	}
	defer g.catch(&err)
	g.rn, err = raft.NewRawNode(&raft.Config{
		ID:                        uint64(s.deps.Self),
		ElectionTick:              s.cfg.ElectionTicks,
		HeartbeatTick:             s.cfg.HeartbeatTicks,
		Storage:                   log,
		Applied:                   log.applied.Index,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             s.cfg.AppendBytesMax,
		MaxCommittedSizePerReady:  s.cfg.CommittedBytesMax,
		MaxUncommittedEntriesSize: s.cfg.UncommittedBytesMax,
		MaxInflightMsgs:           s.cfg.InflightMessagesMax,
		MaxInflightBytes:          s.cfg.InflightBytesMax,
		CheckQuorum:               mutant.Planted != mutant.ReadWithoutQuorum,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    newRaftLogger(s.log, id),
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
	})
	if err != nil {
		return nil, fmt.Errorf("consensus: open group %d: %w", id, err)
	}
	if err := errors.Join(g.fenceLog(nil), g.rebase()); err != nil {
		return nil, fmt.Errorf("consensus: open group %d: %w", id, err)
	}
	g.publish()
	return g, nil
}

// catch ends a call into Raft. Raft has no other answer to a log that cannot be read than to panic; catch turns that
// panic into the error that caused it. Any other panic is a bug and goes on.
func (g *group) catch(err *error) {
	if g.log.err == nil {
		return
	}
	_ = recover() // nil when Raft kept the error to itself, which is no better
	*err = g.log.err
}

func (g *group) step(m *pb.Message) (err error) {
	defer g.catch(&err)
	// Step fails for messages that Raft does not expect, which changes nothing and concerns nobody.
	_ = g.rn.Step(m)
	return nil
}

func (g *group) tick() (err error) {
	defer g.catch(&err)
	g.rn.Tick()
	return nil
}

func (g *group) campaign() (err error) {
	defer g.catch(&err)
	_ = g.rn.Campaign() // fails only as Step does
	return nil
}

// propose reports whether Raft took the entry. data may be reused: Raft copies it.
func (g *group) propose(data []byte) (taken bool, err error) {
	defer g.catch(&err)
	return g.rn.Propose(data) == nil, nil
}

func (g *group) readIndex(ctx []byte) (err error) {
	defer g.catch(&err)
	g.rn.ReadIndex(ctx)
	return nil
}

// takeReady returns what Raft wants done; false when there is nothing.
func (g *group) takeReady() (rd raft.Ready, ok bool, err error) {
	defer g.catch(&err)
	if !g.rn.HasReady() {
		return raft.Ready{}, false, nil
	}
	return g.rn.Ready(), true, nil
}

func (g *group) leads() bool { return g.state == raft.StateLeader }

// mayRead reports whether a ReadIndex can be answered. A leader does not know what is committed before an entry of its
// own term is. Raft postpones such requests itself, except in a group with a single voter, where it would answer with
// the commit index that a crash may have set back.
func (g *group) mayRead() bool { return g.leads() && g.applied.Term == g.term }

// majority is the number of voters that must hold an entry before it is committed. In a joint configuration it is that
// of the larger half.
func (g *group) majority() int {
	return max(kv.Majority(len(g.conf.Voters)), kv.Majority(len(g.conf.VotersOutgoing)))
}

func (g *group) stateName() string {
	if g.stopped != nil {
		return "stopped"
	}
	switch g.state {
	case raft.StateLeader:
		return "leader"
	case raft.StateCandidate:
		return "candidate"
	case raft.StatePreCandidate:
		return "pre-candidate"
	default:
		return "follower"
	}
}

// publish shows the group's state to other goroutines.
func (g *group) publish() {
	st := GroupStatus{
		Group: g.id, State: g.stateName(), Leader: g.leader, Term: g.term, Commit: g.log.hard.Commit,
		Applied: g.applied.Index, FirstIndex: g.log.truncated.Index + 1, LastIndex: g.log.last.Index, Voters: g.voters,
		LogBytes: g.log.size.bytes(), SnapshotsSent: g.sent, SnapshotsReceived: g.received,
	}
	if g.quarantine != nil {
		st.Quarantine = g.quarantine.why
	}
	if g.check != nil {
		st.Check = g.check.result(g.conf)
	}
	g.view.publish(st)
}

func confOf(voters []kv.NodeID) *pb.ConfState {
	cs := &pb.ConfState{}
	for _, v := range voters {
		cs.Voters = append(cs.Voters, uint64(v))
	}
	return cs
}

func (g *group) setConf(cs *pb.ConfState) {
	g.conf, g.confRow = cs, encodeConf(cs)
	g.voters = make([]kv.NodeID, len(cs.Voters))
	for i, id := range cs.Voters {
		g.voters[i] = kv.NodeID(id)
	}
}

// acceptable reports whether a message is one that this version's groups send to each other, from who it says it is
// from. Local messages and proposals are not among them.
func acceptable(m *pb.Message, from, to kv.NodeID) bool {
	if m.GetFrom() != uint64(from) || m.GetTo() != uint64(to) || from == kv.NoNode || uint64(from) >= math.MaxUint64-1 {
		return false
	}
	switch m.GetType() {
	case pb.MsgApp:
		return contiguous(m)
	case pb.MsgAppResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp,
		pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgTimeoutNow:
		return m.GetTerm() != 0
	case pb.MsgSnap:
		return offersSnapshot(m, to)
	case pb.MsgReadIndex:
		// It carries no term: a follower asks whoever it takes for the leader.
		return m.GetTerm() == 0 && isReadContext(m)
	case pb.MsgReadIndexResp:
		return m.GetTerm() != 0 && isReadContext(m)
	default:
		return false
	}
}

// isReadContext reports whether a message carries the number of a read round and nothing else.
func isReadContext(m *pb.Message) bool {
	return len(m.GetEntries()) == 1 && len(m.GetEntries()[0].GetData()) == readContextBytes
}

// offersSnapshot reports whether a MsgSnap names a snapshot of a configuration that this node is in.
func offersSnapshot(m *pb.Message, to kv.NodeID) bool {
	meta := m.GetSnapshot().GetMetadata()
	conf := meta.GetConfState()
	in := func(ids []uint64) bool { return slices.Contains(ids, uint64(to)) }
	return meta.GetIndex() > 0 && meta.GetTerm() > 0 && m.GetTerm() >= meta.GetTerm() &&
		(in(conf.GetVoters()) || in(conf.GetLearners()) || in(conf.GetVotersOutgoing()))
}

// contiguous reports whether the entries of an append follow its position and one another, which Raft relies on.
func contiguous(m *pb.Message) bool {
	index, term := m.GetIndex(), m.GetLogTerm()
	for _, e := range m.Entries {
		index++
		if e.GetIndex() != index || e.GetTerm() < term {
			return false
		}
		term = e.GetTerm()
	}
	return m.GetTerm() >= term && m.GetTerm() != 0
}
