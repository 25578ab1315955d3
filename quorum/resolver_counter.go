package quorum

import (
	"cmp"
	"encoding/binary"
	"math/big"
	"math/bits"
	"slices"
	"strconv"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// Counter is the resolver that adds up the whole numbers written, until the key is deleted: a PN counter (Shapiro et al.,
// "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011). Each node has a tally of what was added
// and one of what was taken away through it; two states are joined by the larger of each, so that nothing is counted
// twice however often and in whatever order states meet.
//
// A tally only ever grows, and one that a node cannot be sure to know the last state of is never grown again: after a
// restart, after a deletion and after a commit that failed the node begins a new one.
type Counter struct{}

// tally is what was counted through one node.
type tally struct {
	node kv.NodeID
	// since tells the node's tallies apart: when it began.
	since causal.HLC
	// at is the time of the last write that it counts.
	at causal.HLC
	// plus and minus are what was added and taken away.
	plus, minus uint64
}

// tallies is the state of a counter.
//
// Invariant: sorted by node and since, without repeats.
type tallies []tally

const (
	talliesFormat = 1
	// tallyBytesMin is an encoded tally that counts little.
	tallyBytesMin = 1 + 8 + 8 + 1 + 1
)

// Name returns "counter".
func (Counter) Name() string { return kv.ResolverCounter }

// Resolve returns the joined state.
func (Counter) Resolve(versions []causal.Sibling) causal.Sibling {
	out := resolveJoin(versions, func(live []causal.Sibling) []byte { return joinAll(live).encode() })
	out.State = !out.Deleted
	return out
}

// KeepsSiblings returns true.
func (Counter) KeepsSiblings() bool { return true }

// Blind returns BlindFolds.
func (Counter) Blind() Blind { return BlindFolds }

// Check refuses what cannot be added.
func (Counter) Check(value []byte, hasContext bool) error {
	if _, err := strconv.ParseInt(string(value), 10, 64); err != nil {
		return kv.Errorf(kv.CodeBadRequest, "under the resolver %s a value is a whole number of 64 bits, which is added", kv.ResolverCounter)
	}
	if hasContext {
		return kv.Errorf(kv.CodeBadRequest, "under the resolver %s a PUT adds and replaces nothing; a context goes with a DELETE", kv.ResolverCounter)
	}
	return nil
}

// Fold returns the state with the value added.
func (Counter) Fold(f Fold) ([]byte, error) {
	all := joinAll(f.Held)
	own := -1
	if f.Last != (causal.Dot{}) {
		own = slices.IndexFunc(all, func(t tally) bool { return t.node == f.Last.Node && t.at == f.Last.Time })
	}
	if f.Again {
		// It was counted with its first attempt.
		if own >= 0 {
			all[own].at = f.Dot.Time
		}
		return all.encode(), nil
	}
	delta, err := strconv.ParseInt(string(f.Value), 10, 64)
	if err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "the value is no whole number of 64 bits")
	}
	if own < 0 {
		t := tally{node: f.Dot.Node, since: f.Dot.Time}
		own, _ = slices.BinarySearchFunc(all, t, compareTallies)
		all = slices.Insert(all, own, t)
	}
	t := &all[own]
	t.at = f.Dot.Time
	into, by := &t.plus, uint64(delta)
	if delta < 0 {
		into, by = &t.minus, -uint64(delta)
	}
	sum, carry := bits.Add64(*into, by, 0)
	if carry != 0 {
		return nil, kv.Errorf(kv.CodeBadRequest, "the counter cannot count any further through this node")
	}
	*into = sum
	return all.encode(), nil
}

func compareTallies(a, b tally) int {
	return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.since, b.since))
}

// talliesOf returns the state that a version stands for. A whole number that was written under another policy is a tally of
// its own; anything else that was counts for nothing.
func talliesOf(s *causal.Sibling) tallies {
	if s.State {
		all, _ := decodeTallies(s.Value)
		return all
	}
	delta, err := strconv.ParseInt(string(s.Value), 10, 64)
	if err != nil {
		return nil
	}
	t := tally{node: s.ID.Node, since: s.ID.Time, at: s.ID.Time}
	if delta < 0 {
		t.minus = -uint64(delta)
	} else {
		t.plus = uint64(delta)
	}
	return tallies{t}
}

func joinAll(versions []causal.Sibling) tallies {
	var all tallies
	for i := range versions {
		all = all.join(talliesOf(&versions[i]))
	}
	return all
}

// join returns the state that has seen all that either has seen.
func (a tallies) join(b tallies) tallies {
	if len(a) == 0 {
		return slices.Clone(b)
	}
	out := make(tallies, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && compareTallies(a[0], b[0]) < 0:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || compareTallies(a[0], b[0]) > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			t := a[0]
			t.at, t.plus, t.minus = max(t.at, b[0].at), max(t.plus, b[0].plus), max(t.minus, b[0].minus)
			if mutant.Planted == mutant.CounterAdds {
				t.plus, t.minus = a[0].plus+b[0].plus, a[0].minus+b[0].minus
			}
			out, a, b = append(out, t), a[1:], b[1:]
		}
	}
	return out
}

// baseTalliesMax bounds the tallies that a state of the strong lane leaves out of the versions beside it. A coordinator would have to
// be dozens of strong writes of the key behind to count on with one that was forgotten.
const baseTalliesMax = 256

// less returns what a counts beyond b. A strong write of a counter replaces what it has seen, and a version that it has not seen may
// have been made on top of some of that: b is what was seen, and tallies only grow.
func (a tallies) less(b tallies) tallies {
	out := slices.Clone(a)
	for i := range out {
		t := &out[i]
		if j, found := slices.BinarySearchFunc(b, *t, compareTallies); found {
			t.plus -= min(t.plus, b[j].plus)
			t.minus -= min(t.minus, b[j].minus)
		}
	}
	return out
}

// latest returns the n tallies that were counted last.
func (a tallies) latest(n int) tallies {
	if len(a) <= n {
		return a
	}
	out := slices.Clone(a)
	slices.SortFunc(out, func(x, y tally) int { return cmp.Or(cmp.Compare(y.at, x.at), compareTallies(x, y)) })
	out = out[:n]
	slices.SortFunc(out, compareTallies)
	return out
}

// counterText returns what a user reads of an encoded state. The sum has as many digits as it needs: each tally fits 64 bits,
// all of them together need not.
func counterText(state []byte) []byte {
	all, _ := decodeTallies(state)
	var sum, part big.Int
	for _, t := range all {
		sum.Add(&sum, part.SetUint64(t.plus))
		sum.Sub(&sum, part.SetUint64(t.minus))
	}
	return sum.Append(nil, 10)
}

func (a tallies) encode() []byte {
	out := make([]byte, 0, 2+len(a)*(tallyBytesMin+8))
	out = binary.AppendUvarint(append(out, talliesFormat), uint64(len(a)))
	for _, t := range a {
		out = binary.AppendUvarint(out, uint64(t.node))
		out = causal.AppendHLC(causal.AppendHLC(out, t.since), t.at)
		out = binary.AppendUvarint(binary.AppendUvarint(out, t.plus), t.minus)
	}
	return out
}

// decodeTallies reads what encode wrote. Rows and messages have checksums, so that nothing else arrives here but by a bug;
// it is taken for an empty state, the same on every replica.
func decodeTallies(b []byte) (tallies, bool) {
	if len(b) == 0 || b[0] != talliesFormat {
		return nil, false
	}
	b = b[1:]
	ok := true
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if ok = ok && n > 0; !ok {
			return 0
		}
		b = b[n:]
		return v
	}
	reading := func() causal.HLC {
		h, rest, err := causal.DecodeHLC(b)
		if ok = ok && err == nil; !ok {
			return 0
		}
		b = rest
		return h
	}
	n := number()
	if !ok || n > uint64(len(b)/tallyBytesMin) {
		return nil, false
	}
	out := make(tallies, n)
	for i := range out {
		out[i] = tally{node: kv.NodeID(number()), since: reading(), at: reading(), plus: number(), minus: number()}
		if !ok || i > 0 && compareTallies(out[i-1], out[i]) >= 0 {
			return nil, false
		}
	}
	return out, len(b) == 0
}
