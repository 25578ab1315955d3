package consensus

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Sender carries frames to peers.
type Sender interface {
	// Send hands a frame to the peer's queue. It copies the frame and never blocks. false says that the frame was
	// dropped, as a full queue does; the groups concerned then slow down towards that peer.
	Send(to kv.NodeID, frame []byte) bool
}

// Machine is a replicated state machine: what a group's committed commands do to storage.
type Machine interface {
	// Apply writes what the entry's commands change to b, and returns one reply a command. It is deterministic: it
	// reads the entry and what earlier entries of its group wrote, which storage already shows, and nothing else.
	//
	// An error that wraps ErrUnreadable or storage.ErrCorruption stops the group, any other the store; b must not have
	// been touched when Apply fails. Any error from the metadata group stops the store.
	Apply(b *storage.Batch, e Committed) ([]any, error)
}

// Restorer is implemented by a Machine that keeps in memory what storage holds.
type Restorer interface {
	// Restored is called by the store loop after a snapshot took the place of the group's rows, and before anything else is
	// applied. Its errors are those of Apply.
	Restored() error
}

// Committed is one committed entry.
type Committed struct {
	Group kv.GroupID
	Pos   causal.Position
	// Time is the reading of the proposer's clock when it proposed the entry.
	Time causal.HLC
	// Uptime is for how long the proposer's process had run then, by a clock that nobody sets. The entries of one term come
	// from one process, so that the difference between two of them is time that has passed.
	Uptime time.Duration
	// Proposer is the node that proposed the entry. It led the group then.
	Proposer kv.NodeID
	// Commands alias the entry and must not be changed. No two of them carry the same key.
	Commands [][]byte
	// decoded are the commands of a partition's group, if they were decoded before.
	decoded []command
}

// Deps is what a Store needs from its node.
type Deps struct {
	Self   kv.NodeID
	Engine *storage.Engine
	Sender Sender
	// Puller fetches the data of snapshots.
	Puller Puller
	Clock  *causal.Clock
	// Meta is the state machine of the metadata group. nil on a node that holds no replica of it.
	Meta       Machine
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// OnLeader is called by the store loop when what this node knows of a group's leader changes, NoNode included. It
	// may be nil and must not block.
	OnLeader func(g kv.GroupID, leader kv.NodeID)
	// Unsettled reports whether this node holds no eventual version of a key of the group that the strong lane's state may not
	// cover, and the log index that this answer depends on. It first has the group's keys take no more eventual writes with
	// readings up to promise, which is durable or does not count. It is called by the store loop: it must not block. nil: no
	// node holds any, ever.
	Unsettled func(g kv.GroupID, promise causal.HLC) (need uint64, none bool)
	// Settled is called by the store loop once it has applied an entry that writes the keys, which are only lent. It may be nil and
	// must not block.
	Settled func(g kv.GroupID, keys [][]byte)
	// MayLead reports whether the node should be handed leaderships. nil: every node. It must not block.
	MayLead func(kv.NodeID) bool
}

// Proposal is one command for a group.
type Proposal struct {
	// Key is what the command changes. Commands with the same key are applied in the order in which they were proposed
	// and never share an entry. A nil Key shares its entry with nothing and is applied in order with everything.
	Key []byte
	// More are further keys that the command changes. They mean the same as Key, which must not be nil.
	More [][]byte
	// Command is what the group's machine gets. It must not be changed afterwards.
	Command []byte
}

// Result says what a proposal's machine replied.
type Result struct {
	Reply any
	// Acks is the number of voters that a majority takes: so many hold the entry on disk, at the least.
	Acks int
}

// WriteOp is a strong write of one key.
type WriteOp struct {
	Key, Value []byte
	Delete     bool
	Condition  kv.Condition
	// TTL is how long the value of a put is there, from the time of its entry on, in whole milliseconds; 0 means for ever.
	// kv.TTLKeep leaves it at when the value that is replaced expires.
	TTL time.Duration
	// kept is when that is: apply sets it.
	kept causal.HLC
	// Batch holds the writes of an atomic batch, on distinct keys. Key, Value, Delete and Condition are then unused, and so
	// are ID and Batch of its writes.
	Batch []WriteOp
	// ID lets a repetition of the write be recognised; the zero value does not.
	ID kv.OpID
	// Guard makes the command, all of a batch, depend on what it was judged by. nil does not.
	Guard *Guard
	// Settled says that the write takes in an eventual version; Key, Value and Delete are that version's, and nothing else is
	// set but Guard.
	Settled *Settled
	// covered, before and base are those of the new state, and stamp is the write's: apply sets them.
	covered []causal.Dot
	before  causal.HLC
	base    []byte
	stamp   causal.Stamp
}

// Refusal says why a write that names an operation was neither applied nor answered as it was before.
type Refusal uint8

// The refusals.
const (
	NotRefused Refusal = iota
	// RefusedReuse: the id was given to another request. Nothing was written for this one.
	RefusedReuse
	// RefusedForgotten: the id lies below its session's floor. It may or may not have been applied before; it is not now.
	RefusedForgotten
)

// WriteReply answers a WriteOp.
type WriteReply struct {
	// Applied is false when the condition missed; then nothing was written.
	Applied bool
	// Repeated says that the operation was decided by an earlier entry, and that this is what was answered then.
	Repeated bool
	// Overtaken says that the guard's revision was not there any more. Nothing was written or remembered; everything else is zero.
	Overtaken bool
	// Refused is set when the operation's id stood against it; everything else is then zero.
	Refused Refusal
	// Found says whether the key existed before. An unconditional put does not look, and always says false.
	Found bool
	// Revision is the key's revision after the write, which for a delete is that of its tombstone. On a missed
	// condition it is the key's present revision, 0 when the key does not exist.
	Revision uint64
	// Items says of each write of a batch that was applied what Found says of a single one.
	Items []bool
	// Missed is the index of the first write of a batch whose condition missed, and Revision its key's.
	Missed int
	// Stamp orders the write against others of the key; zero on a missed condition.
	Stamp causal.Stamp
	// Acks is Result.Acks.
	Acks int
}

// GroupStatus describes this node's replica of a group.
type GroupStatus struct {
	Group kv.GroupID `json:"group"`
	// State is "leader", "follower", "candidate", "pre-candidate", or "stopped" for a replica that met an entry or a
	// row which it cannot read.
	State   string    `json:"state"`
	Leader  kv.NodeID `json:"leader"`
	Term    uint64    `json:"term"`
	Commit  uint64    `json:"commit"`
	Applied uint64    `json:"applied"`
	// FirstIndex is where the log begins, LastIndex+1 when it is empty.
	FirstIndex uint64      `json:"first_index"`
	LastIndex  uint64      `json:"last_index"`
	Voters     []kv.NodeID `json:"voters"`
	// LogBytes is the approximate size of the log on disk.
	LogBytes uint64 `json:"log_bytes"`
	// SnapshotsSent and SnapshotsReceived count the snapshots that followers took from this replica and that were installed
	// here, since the start of the process.
	SnapshotsSent     uint64 `json:"snapshots_sent"`
	SnapshotsReceived uint64 `json:"snapshots_received"`
	// Quarantine says why the replica's state is not to be trusted; it is empty for one that is.
	Quarantine string `json:"quarantine,omitempty"`
	// Check is the last comparison of the replicas' states that this replica took part in. Only the leader knows the others'.
	Check CheckResult `json:"check"`
}
