package quorum

import (
	"context"
	"errors"
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Replica is how the coordinator reaches the replicas of a partition.
//
// A callback runs exactly once, on any goroutine, possibly before the call returned; it does not block. The time limit
// is ctx.Deadline: an implementation must take it from there, because ctx outlives the request that the call belongs
// to and its Done channel closes only when the coordinator shuts down. An error that proves that the replica did not
// take the request, and never will, is a *kv.Error with OutcomeNotApplied or a StaleEpochError; anything else is taken
// for "unknown".
type Replica interface {
	Write(ctx context.Context, to kv.NodeID, w WriteRequest, done func(WriteReply, error))
	Read(ctx context.Context, to kv.NodeID, r ReadRequest, done func(ReadReply, error))
	// WriteEach and ReadEach carry many requests, all of one epoch and none of them a hint, in as few messages as their size
	// lets them. The callback is called for the results of requests first to first+len(results)-1; every request has exactly
	// one.
	WriteEach(ctx context.Context, to kv.NodeID, ws []WriteRequest, done func(first int, results []WriteResult))
	ReadEach(ctx context.Context, to kv.NodeID, rs []ReadRequest, done func(first int, results []ReadResult))
}

// WriteResult is what became of one of many writes.
type WriteResult struct {
	Reply WriteReply
	Err   error
}

// ReadResult is what became of one of many reads.
type ReadResult struct {
	Reply ReadReply
	Err   error
}

// WriteRequest hands a replica a key's sibling set. Its Key and Set are given up by the caller: the receiver keeps them
// until they are durable, and nobody changes what they point to.
type WriteRequest struct {
	Partition kv.PartitionID
	Epoch     kv.Epoch
	Key       []byte
	// Set is the whole sibling set of the key as the sender holds it, never one sibling with a vector over dots that the
	// receiver has not seen.
	Set causal.SiblingSet
	// New is the dot of the attempt that needs the acknowledgement: one of Set's siblings. The zero dot marks a repair,
	// which is merged as far as the drop rule lets it and never counts as an attempt.
	New causal.Dot
	// HintFor is the node that the receiver is to keep the set for, as a hint, because that node does not take it now. NoNode:
	// the set is for the receiver itself.
	HintFor kv.NodeID
	// HandOver marks a hint that is handed to the node it was kept for. No user waits for it, and it travels apart from what
	// users do wait for.
	HandOver bool
}

// IsRepair reports whether the request carries no attempt of its own.
func (w WriteRequest) IsRepair() bool { return w.New == causal.Dot{} }

// WriteReply answers a WriteRequest.
type WriteReply struct {
	// Accepted means that the attempt is durable here, or that something durable here already covers it.
	Accepted bool
	// Healing says of an attempt that was accepted that the replica has lost rows: it has stored the attempt, which counts for
	// nothing, because what it would have refused the attempt for may be among them.
	Healing bool
	// Highest says why a refused attempt was refused: a new attempt must be stamped above it.
	Highest causal.Stamp
	// Base is the last log position appended at the replica that refused. It was really appended there, so that a restamp
	// may be based on it.
	Base causal.Position
}

// ReadRequest asks a replica for all that it holds of a key.
type ReadRequest struct {
	Partition kv.PartitionID
	Epoch     kv.Epoch
	Key       []byte
	// Peek asks for the versions alone that the strong lane's state does not cover (Store.Peek), on behalf of a strong
	// operation. Promise, unless it is zero, is the reading up to which the replica is to take no more attempts on the key.
	Peek    bool
	Promise causal.HLC
}

// ReadReply is what one replica holds of a key, from one consistent view of its storage.
type ReadReply struct {
	HasStrong bool
	Strong    storage.Strong
	Set       causal.SiblingSet
	// Healing says that the replica has lost rows, so that it may lack what it has acknowledged.
	Healing bool
	// Need, in the answer to a Peek, is the index up to which the log must be applied wherever this is taken for all there is.
	Need uint64
}

// Committer makes writes durable: fill is called once, on the committer's own goroutine, to encode into its next batch,
// and done once that batch is synced or has failed. When Commit itself returns an error neither is ever called. An
// accepted commit may also fail without having been filled. done must not block.
//
// CommitAsync is Commit for what somebody is told of before it is durable: visible is called once, as soon as reads of storage find it, unless
// done is called before that with an error. The sync comes a few milliseconds later. Nothing that was committed later, by either method, is
// durable before it.
type Committer interface {
	Commit(fill func(*storage.Batch), done func(error)) error
	CommitAsync(fill func(*storage.Batch), visible func(), done func(error)) error
}

// StaleEpochError is returned by a replica that does not own the partition at the request's epoch, or that knows another
// map than the one the request was routed by. Nothing was written there.
type StaleEpochError struct {
	// Epoch is the epoch of the replica's own map.
	Epoch kv.Epoch
}

// Error says which epoch the replica has.
func (e *StaleEpochError) Error() string {
	return fmt.Sprintf("the request was routed by another partition map; the replica has epoch %d", e.Epoch)
}

// refused reports whether err proves that the replica did not take the request and never will.
func refused(err error) bool {
	if _, stale := errors.AsType[*StaleEpochError](err); stale {
		return true
	}
	return kv.AsError(err).Outcome == kv.OutcomeNotApplied
}
