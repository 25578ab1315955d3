package model

// Bounds of the model. A path that would need more is not taken further, so that they bound the search, not the promise.
const (
	replicas    = 3
	majority    = replicas/2 + 1
	writesMax   = 3  // eventual writes
	attemptsMax = 3  // stamps that one eventual write gets
	strongMax   = 5  // strong operations
	entriesMax  = 14 // entries ever appended, in all logs
	roundsMax   = 4  // rounds of Peek and settling of one strong operation
	opsMax      = writesMax + strongMax
)

// stamp orders versions: by base, clock reading and node, in that order.
type stamp struct {
	base uint8 // position of an entry: term in the upper four bits, index in the lower
	time uint8
	node uint8
}

func (a stamp) after(b stamp, rules *Rules) bool {
	switch {
	case a.base != b.base:
		return a.base > b.base
	case a.time != b.time:
		return a.time > b.time
	}
	return rules.NodeBreaksTies && a.node > b.node
}

// set is what one replica holds of the key in E, or what one message carries of it.
type set struct {
	held [writesMax]uint8 // the attempt held of each write, 0 for none
	seen [replicas]uint8  // the context: highest clock reading of each node that is covered
	need uint8            // the committed entry whose S dropped something from it, 0 for none
	ids  uint8            // writes that the context covers, kept only without ContextCoversDots
}

// strongState is S: the state of the replicated state machine after an entry.
type strongState struct {
	value    uint8
	stamp    stamp
	revision uint8            // position of the entry that wrote last
	covered  [writesMax]uint8 // covered attempts of each write, all bits when the whole write is
}

// entryKind is what an entry of the log does when it is applied.
type entryKind uint8

const (
	entryEmpty entryKind = iota
	entryPut
	entryCover // only without PutIsOneEntry
	entrySwap  // compare-and-set and delete
	entrySettle
)

// entry is an entry of some replica's log. Which entries come before it never changes, so that it also holds the state
// that applying it leads to.
type entry struct {
	kind   entryKind
	prev   uint8 // id of the entry before it
	pos    uint8
	op     uint8 // strong operation + 1
	done   uint8 // 1: it took effect, 0: its condition did not hold or its operation was applied before
	write  uint8 // of a Settle: the winner
	marks  stamp // what it raises the fence to
	result strongState
}

// replica is one node. Its log is named by the ids of the last entry and of the last committed one, which is applied.
type replica struct {
	term, last, commit uint8
	leads              uint8 // 1: it believes to be the leader of term
	clock              uint8 // highest reading issued
	promise            uint8 // eventual writes stamped at or below it are refused
	held               set
}

// flight is the way of one attempt to one replica.
type flight uint8

const (
	flightNone flight = iota
	flightSent
	flightUnsynced // accepted, and acknowledged by the next sync
	flightAcked
	flightRefused
)

// attempt is an eventual write under one stamp, with the set that its messages carry.
type attempt struct {
	stamp stamp
	sent  set
	to    [replicas]flight
}

// phase is how far an operation has got.
type phase uint8

const (
	phaseIdle     phase = iota
	phaseOpen           // an eventual write waits for acknowledgements
	phasePeeking        // a strong operation gathers unsettled versions
	phaseSettling       // its Settle is in the log
	phaseProposed       // its entry is in the log
	phaseGaveUp         // whoever worked on it is gone, or it ran out of rounds: its outcome is unknown
	phaseReturned
)

// write is an eventual write.
type write struct {
	phase phase
	at    uint8 // the coordinator
	tries uint8
	above stamp // the highest stamp, base and promise that it was refused with
	base  uint8
	late  uint8
	try   [attemptsMax]attempt
}

// strong is a strong operation.
type strong struct {
	phase    phase
	at       uint8 // the replica that works on it
	rounds   uint8
	answered uint8 // bits of the replicas that answered this round of Peek
	need     uint8 // the committed entry that at must have applied, the highest of the read index and the answers
	known    uint8 // the winner when this round began: write + 1 and attempt in the upper four bits
	h        uint8 // the reading that the answers promise to stay above
	entry    uint8 // the Settle waited for
	found    [writesMax]uint8
	value    uint8 // what it returned, or the value that it replaced
}

// State is the whole world at one moment. It is a value without pointers, and two equal states have equal futures.
type State struct {
	node      [replicas]replica
	disk      replica // what the victim of the crash has synced, while a crash is still to come
	log       [entriesMax]entry
	entries   uint8
	writes    [writesMax]write
	strong    [strongMax]strong
	elections uint8 // still to come
	crashes   uint8
	repairs   uint8
	// before holds, for each operation, which others had returned when it was invoked.
	before   [opsMax]uint8
	returned uint8
}
