package consensus

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
)

const (
	// aheadBytesMax bounds what the decoded entries of all groups that wait to be applied count for. An entry beyond it is decoded
	// again when it is applied.
	aheadBytesMax = 4 << 20
	// commandBytes is what a decoded command counts for beside the entry that it aliases.
	commandBytes = 320
)

// ahead keeps the entries of a group's log that were decoded when they were appended, which is when their fences are raised, until
// they are applied, as a rule a round trip later: so each is decoded once. It may lack any entry.
//
// Invariant: an entry is known by its index and its term, as in Raft. Whatever takes its place in the log has another term.
type ahead struct {
	// entries are in the order of their indexes; those before next are gone.
	entries []aheadEntry
	next    int
}

// aheadEntry is a normal entry with the commands that were decoded.
type aheadEntry struct {
	committed Committed
	bytes     int
}

// decodeAhead decodes an entry and its commands. An entry without commands needs no decoding, and one that does not decode is dealt
// with when it is applied, which is when all replicas meet it.
func decodeAhead(g *group, e *pb.Entry) (aheadEntry, bool) {
	if e.GetType() != pb.EntryNormal || len(e.GetData()) == 0 {
		return aheadEntry{}, false
	}
	c, err := committed(g.id, e)
	if err == nil {
		c.decoded, err = decodeCommands(&c)
	}
	return aheadEntry{committed: c, bytes: len(e.GetData()) + len(c.Commands)*commandBytes}, err == nil && len(c.Commands) > 0
}

// put keeps an entry that was just appended, and forgets those whose place it takes. used is what all groups' entries count for.
func (a *ahead) put(d aheadEntry, used *int) {
	index := d.committed.Pos.Index
	for last := len(a.entries) - 1; last >= a.next && a.entries[last].committed.Pos.Index >= index; last-- {
		*used -= a.entries[last].bytes
		a.entries[last] = aheadEntry{}
		a.entries = a.entries[:last]
	}
	if *used+d.bytes <= aheadBytesMax {
		*used += d.bytes
		a.entries = append(a.entries, d)
	}
}

// take returns the entry at the position, which is about to be applied, and forgets it and those before it.
func (a *ahead) take(pos causal.Position, used *int) (c Committed, found bool) {
	for a.next < len(a.entries) && a.entries[a.next].committed.Pos.Index <= pos.Index {
		d := &a.entries[a.next]
		*used -= d.bytes
		if d.committed.Pos == pos {
			c, found = d.committed, true
		}
		*d = aheadEntry{}
		a.next++
	}
	if a.next > len(a.entries)/2 {
		rest := copy(a.entries, a.entries[a.next:])
		clear(a.entries[rest:])
		a.entries, a.next = a.entries[:rest], 0
	}
	return c, found
}

// drop forgets everything.
func (a *ahead) drop(used *int) {
	for i := range a.entries[a.next:] {
		*used -= a.entries[a.next+i].bytes
	}
	*a = ahead{}
}
