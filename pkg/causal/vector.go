package causal

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Vector is a version vector: for each node the time up to which its dots are covered.
//
// Invariant: sorted by node, at most one entry a node. An entry covers every dot of its node with a time at or below
// its own, whether the holder has seen that dot or not.
type Vector []Dot

// LogDot is what the state of the strong lane that a log entry wrote is called in vectors. The log is an actor of its own there, under
// the name of no node, and its readings are indices: each state of a key replaces the one before, so that an entry for the log covers
// exactly the states up to its index. They are far below every reading of a clock.
func LogDot(index uint64) Dot { return Dot{Node: kv.NoNode, Time: HLC(index)} }

// Log returns the index up to which the vector covers states of the strong lane, 0 if it covers none.
func (v Vector) Log() uint64 {
	if len(v) > 0 && v[0].Node == kv.NoNode {
		return uint64(v[0].Time)
	}
	return 0
}

// LogUpTo returns the vector that covers no state of the strong lane beyond the index.
func (v Vector) LogUpTo(index uint64) Vector {
	switch {
	case v.Log() <= index:
		return v
	case index == 0:
		return v[1:]
	}
	out := slices.Clone(v)
	out[0] = LogDot(index)
	return out
}

// find returns the index of the node's entry, or where it would be inserted. Vectors have as many entries as nodes ever
// coordinated the key, usually below ten, so walking beats a binary search.
func (v Vector) find(n kv.NodeID) (int, bool) {
	for i := range v {
		if v[i].Node >= n {
			return i, v[i].Node == n
		}
	}
	return len(v), false
}

// Covers reports whether the vector's entry for the dot's node is at or above the dot's time.
func (v Vector) Covers(d Dot) bool {
	i, found := v.find(d.Node)
	return found && d.Time <= v[i].Time
}

// Dominates reports whether v covers every dot that o covers.
func (v Vector) Dominates(o Vector) bool {
	if len(o) > len(v) {
		return false
	}
	i := 0
	for j := range o {
		for i < len(v) && v[i].Node < o[j].Node {
			i++
		}
		if i == len(v) || v[i].Node != o[j].Node || v[i].Time < o[j].Time {
			return false
		}
	}
	return true
}

// Equal reports whether v and o have the same entries.
func (v Vector) Equal(o Vector) bool { return slices.Equal(v, o) }

// Latest returns the highest time of any entry, 0 for an empty vector. A coordinator that is handed a vector by a user
// must show it to Clock.Observe: an entry ahead of every clock would silently cover writes yet to be made.
func (v Vector) Latest() HLC {
	var latest HLC
	for i := range v {
		latest = max(latest, v[i].Time)
	}
	return latest
}

// Join returns the vector that covers exactly what v or o covers.
func (v Vector) Join(o Vector) Vector {
	// The usual case is that one side has seen everything the other has; sharing it saves the copy.
	if v.Dominates(o) {
		return v
	}
	if o.Dominates(v) {
		return o
	}
	out := make(Vector, 0, len(v)+len(o))
	i, j := 0, 0
	for i < len(v) && j < len(o) {
		switch a, b := v[i], o[j]; {
		case a.Node < b.Node:
			out = append(out, a)
			i++
		case a.Node > b.Node:
			out = append(out, b)
			j++
		default:
			out = append(out, Dot{Node: a.Node, Time: max(a.Time, b.Time)})
			i++
			j++
		}
	}
	out = append(out, v[i:]...)
	return append(out, o[j:]...)
}

// With returns the vector that also covers d.
func (v Vector) With(d Dot) Vector {
	i, found := v.find(d.Node)
	switch {
	case found && d.Time <= v[i].Time:
		return v
	case found:
		out := slices.Clone(v)
		out[i].Time = d.Time
		return out
	}
	out := make(Vector, len(v)+1)
	copy(out, v[:i])
	out[i] = d
	copy(out[i+1:], v[i:])
	return out
}

// valid reports whether the vector's invariant holds.
func (v Vector) valid() bool {
	for i := 1; i < len(v); i++ {
		if v[i-1].Node >= v[i].Node {
			return false
		}
	}
	return true
}
