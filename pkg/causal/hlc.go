package causal

import (
	"cmp"
	"strconv"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// HLC is a reading of a hybrid logical clock: 48 bits of milliseconds since 1970, then a 16-bit counter. The order of
// readings is the order of the integers. Zero is no reading (Kulkarni et al., "Logical Physical Clocks", 2014).
type HLC uint64

const (
	hlcCounterBits = 16
	// hlcMillisMax is the last millisecond an HLC can express, in the year 10889.
	hlcMillisMax = 1<<48 - 1
)

// MakeHLC returns the reading of the millisecond and counter. Milliseconds that 48 bits cannot hold are brought to the
// nearest that they can, because wrapping around would put the distant future before the present.
func MakeHLC(ms int64, counter uint16) HLC {
	ms = min(max(ms, 0), hlcMillisMax)
	return HLC(ms)<<hlcCounterBits | HLC(counter)
}

// Millis returns the milliseconds since 1970.
func (h HLC) Millis() int64 { return int64(h >> hlcCounterBits) }

// Counter returns the position among the readings of one millisecond.
func (h HLC) Counter() uint16 { return uint16(h) }

// Time returns the reading's millisecond in UTC.
func (h HLC) Time() time.Time { return time.UnixMilli(h.Millis()).UTC() }

// String returns the reading as milliseconds.counter.
func (h HLC) String() string {
	return strconv.FormatInt(h.Millis(), 10) + "." + strconv.FormatUint(uint64(h.Counter()), 10)
}

// Dot names one attempt to write one key: the node that stamped it and the reading of its clock. A NodeID is never
// reused and a clock never repeats, so a dot is never given twice.
type Dot struct {
	Node kv.NodeID
	Time HLC
}

// IsZero reports whether d is no dot.
func (d Dot) IsZero() bool { return d == Dot{} }

// Compare orders dots by node, then by time: the order in which sets keep them. It says nothing about causality.
func (d Dot) Compare(o Dot) int {
	if c := cmp.Compare(d.Node, o.Node); c != 0 {
		return c
	}
	return cmp.Compare(d.Time, o.Time)
}

// Position is a place in the log of a Raft group. The term compares first, so that an entry that was truncated and
// replaced lies before its replacement.
type Position struct {
	Term, Index uint64
}

// IsZero reports whether p is before every entry.
func (p Position) IsZero() bool { return p == Position{} }

// Compare orders positions by term, then by index.
func (p Position) Compare(o Position) int {
	if c := cmp.Compare(p.Term, o.Term); c != 0 {
		return c
	}
	return cmp.Compare(p.Index, o.Index)
}

// Stamp orders the versions of a key across both lanes: log position first, hybrid clock second, node last. Only a
// version based at or after a strong write's entry can follow that write, so no skewed clock can turn a stamp against
// an acknowledged strong write.
type Stamp struct {
	// Base is the position of an entry really appended to the key's group, at the coordinator or at a replica that
	// refused an earlier stamp. It is never a guess.
	Base Position
	Time HLC
	Node kv.NodeID
}

// IsZero reports whether s is before every stamp.
func (s Stamp) IsZero() bool { return s == Stamp{} }

// Compare orders stamps by base, time and node.
func (s Stamp) Compare(o Stamp) int {
	if c := s.Base.Compare(o.Base); c != 0 {
		return c
	}
	if c := cmp.Compare(s.Time, o.Time); c != 0 {
		return c
	}
	return cmp.Compare(s.Node, o.Node)
}

// After reports whether s follows o.
func (s Stamp) After(o Stamp) bool { return s.Compare(o) > 0 }
