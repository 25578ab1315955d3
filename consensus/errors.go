package consensus

import (
	"errors"
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Sentinels. What Propose, Write, ReadBarrier and Commit return is a *kv.Error that wraps one of these, or ErrNotLeader.
var (
	// ErrStopped says that the store has stopped, or that this replica of the group has.
	ErrStopped = errors.New("the replica has stopped")
	// ErrQuarantined says that this replica of the group is not to be trusted and is being rebuilt.
	ErrQuarantined = errors.New("this replica is quarantined and being rebuilt from its peers")
	// ErrUnreadable is wrapped by a machine whose command has a format that it does not know. It stops the group:
	// skipping what others apply would make replicas diverge.
	ErrUnreadable = errors.New("unreadable entry")
	// ErrBadFrame is returned for a frame from a peer that does not decode.
	ErrBadFrame = errors.New("bad raft frame")
	// ErrOverwritten says that another leader's entry took the place of the proposal's.
	ErrOverwritten = errors.New("another leader's entry took this one's place")
	// ErrSuperseded says that a snapshot took the place of the log in which the proposal's entry was. What became of it is
	// not known here.
	ErrSuperseded = errors.New("a snapshot took the place of the entry")
)

// ErrNotLeader says that this node does not lead the group, and who does as far as it knows.
type ErrNotLeader struct {
	Group  kv.GroupID
	Leader kv.NodeID // kv.NoNode when unknown
	// Silent says that this node leads, or follows, without having heard of a majority, or of Leader, for a while.
	Silent bool
}

// Error names the group and its leader.
func (e ErrNotLeader) Error() string {
	if e.Silent {
		return fmt.Sprintf("the replica of group %d is out of touch with a majority", e.Group)
	}
	if e.Leader == kv.NoNode {
		return fmt.Sprintf("group %d has no known leader", e.Group)
	}
	return fmt.Sprintf("group %d is led by node %d", e.Group, e.Leader)
}

func notLeader(g kv.GroupID, leader kv.NodeID) *kv.Error {
	return kv.Errorf(kv.CodeNoLeader, "%w", ErrNotLeader{Group: g, Leader: leader})
}

// outOfTouch is what operations get of a group that has been silent for too long.
func outOfTouch(g kv.GroupID) *kv.Error {
	return kv.Errorf(kv.CodeNoLeader, "%w", ErrNotLeader{Group: g, Silent: true})
}

// stopsGroup reports whether err condemns one replica rather than the disk under all of them.
func stopsGroup(err error) bool {
	return errors.Is(err, ErrUnreadable) || errors.Is(err, storage.ErrCorruption)
}

// stopped is what operations get that a stopping store, or a stopped group, can no longer serve.
func stopped(o kv.Outcome) *kv.Error {
	return kv.Errorf(kv.CodeNotReady, "%w", ErrStopped).WithOutcome(o)
}
