package consensus

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// eraLength is how long an era lasts.
	eraLength = 5 * time.Minute
	// eraEntriesMax ends an era whatever the time: so many entries a group's sessions can come from, times erasKept. It is
	// what bounds them when no time can be told. Only a group with more than 14,000 entries a second forgets sooner than
	// after fifteen minutes; an entry waits for a disk and holds up to Config.EntryCommandsMax writes.
	eraEntriesMax = 1 << 22
	// clockTick is the least step that is written down, so that a busy group does not write its clock with every entry.
	clockTick = time.Second

	clockFormat byte = 1
	clockBytes       = 1 + 5*8
)

// groupClock tells a group's eras. It is a row, and follows from the group's entries alone.
//
// It counts the time that has passed, and asks nobody what time it is: an entry says for how long its proposer's process
// had run, by a clock that nobody sets, and all entries of a term come from one process, its leader. So the difference
// between two of a term is time that has passed, however wrong and unsteady any wall clock is. Eras told by the entries'
// wall clocks were the first idea; one leader whose clock was 21 minutes ahead had the group forget everything, and once
// the clock was right again nothing was forgotten until the others' had come there. A bound on the step that an entry may
// take is no help: a group has thousands of entries a second, and a wrong clock all the steps it needs.
//
// What passes from the last entry of a term to the first of the next is not counted, so the clock is never fast, and
// operations are known for at least fifteen minutes. It may be slow: where every entry had a term of its own it would
// stand still. Then eraEntriesMax goes on to end eras.
type groupClock struct {
	era uint64
	// spent is the part of the era that has passed at the entry which the clock was last written for: it had this term, and
	// its proposer had run for uptime then.
	spent  time.Duration
	term   uint64
	uptime time.Duration
	// began is the index of the era's first entry.
	began uint64
}

// after returns the clock at the entry. moved: it has to be written; else the time goes on to count from where it did.
func (c groupClock) after(e Committed) (next groupClock, moved bool) {
	next = c
	passed := e.Uptime - c.uptime
	if e.Pos.Term != c.term {
		passed, moved = 0, true
	}
	if passed >= clockTick {
		moved = true
	}
	if !moved && e.Pos.Index-c.began < eraEntriesMax {
		return c, false
	}
	// A process's uptime does not fall; were it to, that would be no time.
	next.spent, next.term, next.uptime = c.spent+max(passed, 0), e.Pos.Term, e.Uptime
	switch eras := uint64(next.spent / eraLength); {
	case eras > 0:
		next.era, next.spent, next.began = c.era+eras, next.spent%eraLength, e.Pos.Index
	case e.Pos.Index-c.began >= eraEntriesMax:
		next.era, next.spent, next.began = c.era+1, 0, e.Pos.Index
	}
	return next, true
}

func (c *groupClock) encode() []byte {
	row := append(make([]byte, 0, clockBytes), clockFormat)
	for _, n := range []uint64{c.era, uint64(c.spent), c.term, uint64(c.uptime), c.began} {
		row = binary.BigEndian.AppendUint64(row, n)
	}
	return row
}

// readGroupClock returns the group's clock; a group that never saw an operation with an id has none.
func readGroupClock(rows dedupRows, g kv.GroupID) (c groupClock, found bool, err error) {
	row, found, err := rows.Dedup(g, []byte{dedupClock})
	if err != nil || !found {
		return groupClock{}, false, err
	}
	r := reader{b: row}
	if f := r.byte("clock format"); f != clockFormat || len(row) != clockBytes {
		return groupClock{}, false, fmt.Errorf("%w: clock of group %d", ErrUnreadable, g)
	}
	field := func(i int) uint64 { return binary.BigEndian.Uint64(row[1+8*i:]) }
	return groupClock{
		era: field(0), spent: time.Duration(field(1)), term: field(2), uptime: time.Duration(field(3)), began: field(4),
	}, true, nil
}
