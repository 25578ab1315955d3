package kv

import "time"

// Default limits (design.md §12). All of them are configurable where they are enforced.
const (
	KeyBytesMax       = 4 << 10
	ValueBytesMax     = 1 << 20
	RequestTimeout    = 5 * time.Second
	RequestTimeoutMax = 60 * time.Second
	// TTLMax bounds how long after its write a value can be set to expire: ten years.
	TTLMax = 10 * 365 * 24 * time.Hour
	// TTLKeep, in the place of a time to live, leaves it at when the value that is replaced expires, or never does. It goes with a
	// condition that the key exists. Nodes say it to one another; the public API does not know it.
	TTLKeep time.Duration = -1
)

// Op is what a request does.
type Op uint8

// The operations. Zero is invalid, so that a request that was never filled in is not mistaken for a read.
const (
	OpGet Op = iota + 1
	OpPut
	OpDelete
	// OpInquire asks what became of the write that Request.ID names; Key is one that it was to change.
	OpInquire
	// OpBatch applies Request.Items, all of them or none. Key is that of the first, by which the batch is routed.
	OpBatch
	// OpList lists keys, as Request.List says. It has no Key.
	OpList
)

var opNames = [...]string{"invalid", "get", "put", "delete", "inquire", "batch", "list"}

// String returns the operation as metrics and messages spell it.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return opNames[0]
}

// IsWrite reports whether the operation changes keys.
func (o Op) IsWrite() bool { return o == OpPut || o == OpDelete || o == OpBatch }

// ConditionKind says what a conditional write requires of the key's present state.
type ConditionKind uint8

// The kinds of condition.
const (
	// ConditionNone: the write is unconditional.
	ConditionNone ConditionKind = iota
	// ConditionVersion: the current version must equal Condition.Version; 0 means that the key must not exist.
	ConditionVersion
	// ConditionExists: the key must exist, at whatever version.
	ConditionExists
)

// Condition guards a strong write.
type Condition struct {
	Kind    ConditionKind
	Version uint64
}

// SiblingMode says how a read wants concurrent versions answered under a resolver that keeps them.
type SiblingMode uint8

// The sibling modes.
const (
	// SiblingsDefault answers all siblings (HTTP 300) where the policy's resolver keeps them.
	SiblingsDefault SiblingMode = iota
	// SiblingsAll is SiblingsDefault, asked for explicitly.
	SiblingsAll
	// SiblingsResolve picks the last writer and says how many siblings there were.
	SiblingsResolve
	// SiblingsError refuses with CodeSiblings when there is more than one version.
	SiblingsError
)

// Request is one operation on one key as a user asked for it. Its deadline travels in the context beside it.
// The lanes treat Key, Value and Context as immutable; whoever builds a Request gives them up.
type Request struct {
	Op    Op
	Level Level // LevelUnset: the policy decides
	// Fallback is a weaker level that the answer may have when Level cannot be met; LevelUnset permits none. The node that was
	// asked sees to it, so that nodes never say it to one another.
	Fallback  Level
	Quorum    Quorum
	Condition Condition
	Siblings  SiblingMode
	// Sloppy lets durable hints on nodes that are no replicas of the key count towards the W of an eventual write.
	Sloppy  bool
	Key     []byte
	Value   []byte
	Context []byte // the causal context token of an earlier answer, decoded from its text form; nil for none
	// Session is the token of what the request's session has seen, at level causal; nil for a session that begins. At level strong
	// it is only added to, and nil for none.
	Session []byte
	// MaxStaleness is how stale an answer at level bounded may be at most; 0 means MaxStalenessDefault. It goes with no other level.
	MaxStaleness time.Duration
	// ID lets a strong write be repeated without being applied twice.
	ID OpID
	// TTL is how long the value of a put is there, in whole milliseconds; 0 means for ever, and see TTLKeep.
	TTL time.Duration
	// Items are the writes of an OpBatch.
	Items []BatchItem
	// List is what an OpList asks for.
	List *ListQuery
	// Resume is how a coordinator hands a write on that others overtook; only nodes say it to one another.
	Resume []byte
	// Hops counts the nodes that forwarded the request. Bounded by the router, so that nodes that disagree about a
	// leader cannot hand a request around for ever.
	Hops uint8
}

// Sibling is one of several concurrent versions of a key.
type Sibling struct {
	Value     []byte
	Deleted   bool
	Timestamp time.Time
	Node      NodeID
}

// Answer is what became of one of several requests. Err is nil where Response answers it.
type Answer struct {
	Response Response
	Err      *Error
}

// Response answers a Request that did not fail. For a read of an absent key Found is false; that is no error here.
type Response struct {
	Found bool
	// Settled is false while the value has not entered the Raft order.
	Settled bool
	Level   Level   // the level achieved
	Outcome Outcome // of a write
	Acks    int     // replicas that acknowledged, or answered
	Hinted  int     // how many of Acks are hints that other nodes keep for replicas
	Version uint64  // Raft index of the strong write; 0 for a value that has only been written eventually
	Value   []byte
	Context []byte // opaque causal context covering everything this answer reflects
	// Session is the token of what the session has seen with this answer.
	Session []byte
	// Staleness is how stale the answer is at most, at level bounded: it has all that was acknowledged that long before the replica
	// answered.
	Staleness time.Duration
	// Timestamp is the wall-clock part of the version's hybrid clock; zero when nothing was found.
	Timestamp time.Time
	// Expires is when the value that a read found expires, by the cluster's hybrid clock; zero: never.
	Expires time.Time
	// Siblings holds all concurrent versions when there is more than one and the request asked for all.
	Siblings []Sibling
	// Concurrent is the number of versions that a resolved answer was chosen from, when more than one.
	Concurrent  int
	Coordinator NodeID
	Replicas    []NodeID // who acknowledged or answered
	// Items answers those of an OpBatch, in their order.
	Items []ItemResult
	// Listed are the keys of an OpList, in the order of their bytes, and More says that others follow.
	Listed []ListItem
	More   bool
}
