package consensus

import (
	"maps"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// CheckResult is how far the replicas of a group agreed on their state at one position of its log.
type CheckResult struct {
	// Index is that of the entry at which every replica hashed its state; 0 when there was no check.
	Index uint64 `json:"index"`
	// Done says that nothing more is going to be known.
	Done bool `json:"done"`
	// Agree hold the same state as a majority, Differ another one. When no majority holds the same state both are empty and
	// Split lists the replicas whose states are known.
	Agree  []kv.NodeID `json:"agree"`
	Differ []kv.NodeID `json:"differ"`
	Split  []kv.NodeID `json:"split"`
	// Silent are the replicas of which nothing is known: they are away, behind, quarantined, or busy with other checks.
	Silent []kv.NodeID `json:"silent"`
}

// stateCheck collects what the replicas of a group have at one position. It decides; the loop acts.
type stateCheck struct {
	pos  causal.Position
	sums map[kv.NodeID]uint64
	// accused are those that were found to differ, so that each is counted once.
	accused map[kv.NodeID]bool
	// due is the tick from which on nobody is waited for; 0 as long as this node's own sum is being worked out.
	due  uint64
	done bool
	// split says that at the end no majority had the same sum and not all sums were equal.
	split bool
}

func newStateCheck(pos causal.Position) *stateCheck {
	return &stateCheck{pos: pos, sums: make(map[kv.NodeID]uint64), accused: make(map[kv.NodeID]bool)}
}

// right returns the sum that a majority of the voters has, of both halves in a joint configuration. Without one nobody can
// say who is right: two of four, or one of two.
func (c *stateCheck) right(conf *pb.ConfState) (uint64, bool) {
	for _, sum := range c.sums {
		if c.majority(conf.GetVoters(), sum) && (len(conf.GetVotersOutgoing()) == 0 || c.majority(conf.GetVotersOutgoing(), sum)) {
			return sum, true
		}
	}
	return 0, false
}

func (c *stateCheck) majority(voters []uint64, sum uint64) bool {
	n := 0
	for _, v := range voters {
		if own, known := c.sums[kv.NodeID(v)]; known && own == sum {
			n++
		}
	}
	return n >= kv.Majority(len(voters))
}

// judge takes in what is known and returns who was newly found to differ from a majority. over says that nobody is waited
// for any longer.
func (c *stateCheck) judge(conf *pb.ConfState, over bool) (accused []kv.NodeID) {
	right, found := c.right(conf)
	if found {
		for _, id := range slices.Sorted(maps.Keys(c.sums)) {
			if c.sums[id] != right && !c.accused[id] {
				c.accused[id] = true
				accused = append(accused, id)
			}
		}
	}
	if c.done {
		return accused
	}
	c.done = over || len(c.silent(conf)) == 0
	c.split = c.done && !found && c.distinct() > 1
	return accused
}

func (c *stateCheck) distinct() int {
	seen := make(map[uint64]bool, len(c.sums))
	for _, sum := range c.sums {
		seen[sum] = true
	}
	return len(seen)
}

// silent returns the members that have not said what they have.
func (c *stateCheck) silent(conf *pb.ConfState) []kv.NodeID {
	var out []kv.NodeID
	for _, id := range members(conf) {
		if _, known := c.sums[id]; !known {
			out = append(out, id)
		}
	}
	return out
}

// verdict says what a replica that reported its sum has to do.
func (c *stateCheck) verdict(conf *pb.ConfState, id kv.NodeID) checkVerdict {
	right, found := c.right(conf)
	switch {
	case found && c.sums[id] == right:
		return verdictAgrees
	case found:
		return verdictDiffers
	case c.done:
		return verdictOver
	default:
		return verdictUndecided
	}
}

func (c *stateCheck) result(conf *pb.ConfState) CheckResult {
	out := CheckResult{Index: c.pos.Index, Done: c.done, Silent: c.silent(conf)}
	right, found := c.right(conf)
	for _, id := range slices.Sorted(maps.Keys(c.sums)) {
		switch {
		case !found:
			out.Split = append(out.Split, id)
		case c.sums[id] == right:
			out.Agree = append(out.Agree, id)
		default:
			out.Differ = append(out.Differ, id)
		}
	}
	return out
}

// members returns the nodes of a configuration in order, learners included: they too hold the state.
func members(conf *pb.ConfState) []kv.NodeID {
	var out []kv.NodeID
	for _, ids := range [][]uint64{conf.GetVoters(), conf.GetVotersOutgoing(), conf.GetLearners(), conf.GetLearnersNext()} {
		for _, id := range ids {
			out = append(out, kv.NodeID(id))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
