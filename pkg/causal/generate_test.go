package causal

import (
	"fmt"

	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The universe of the property tests is small, so that generated sets overlap, and finite, so that a dumb twin can look
// at each of its dots.
const (
	universeNodes = 4
	universeTimes = 6
)

func universe() []Dot {
	var out []Dot
	for n := kv.NodeID(1); n <= universeNodes; n++ {
		for t := HLC(1); t <= universeTimes; t++ {
			out = append(out, Dot{Node: n, Time: t})
		}
	}
	return out
}

// siblingOf returns the one write that has the dot.
func siblingOf(d Dot) Sibling {
	return Sibling{
		ID:      Dot{Node: d.Node, Time: 1 + d.Time/2},
		Dot:     d,
		Stamp:   Stamp{Base: Position{Term: 1 + uint64(d.Time)%2, Index: uint64(d.Node)}, Time: d.Time, Node: d.Node},
		Deleted: (uint64(d.Node)+uint64(d.Time))%5 == 0,
		State:   (uint64(d.Node)+uint64(d.Time))%3 == 0,
		Expiry:  d.Time % 4 * 100,
		Value:   fmt.Appendf(nil, "%d@%d", d.Node, d.Time),
	}
}

func drawVector(t *rapid.T, name string) Vector {
	var v Vector
	for n := kv.NodeID(1); n <= universeNodes; n++ {
		if at := rapid.IntRange(0, universeTimes).Draw(t, fmt.Sprintf("%s[%d]", name, n)); at > 0 {
			v = append(v, Dot{Node: n, Time: HLC(at)})
		}
	}
	return v
}

func drawDots(t *rapid.T, name string) []Dot {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Dot {
		return Dot{
			Node: kv.NodeID(rapid.IntRange(1, universeNodes).Draw(t, "node")), Time: HLC(rapid.IntRange(1, 4*universeTimes).Draw(t, "time")),
		}
	}), 0, 2*SeenDotsMax).Draw(t, name)
}

// drawSet draws a valid set of which each sibling is the one write that has its dot.
func drawSet(t *rapid.T, name string) SiblingSet {
	s := SiblingSet{Context: drawVector(t, name+".context"), Pruned: rapid.Uint64Range(0, 2).Draw(t, name+".pruned")}
	for _, d := range universe() {
		if s.Context.Covers(d) && rapid.IntRange(0, 2).Draw(t, name+".holds") == 0 {
			s.Siblings = append(s.Siblings, siblingOf(d))
		}
	}
	return s
}

// drawBrokenSet draws a valid set of which two may hold different siblings with the same dot, which a bug or a
// flipped bit could cause.
func drawBrokenSet(t *rapid.T, name string) SiblingSet {
	s := drawSet(t, name)
	for i := range s.Siblings {
		w := &s.Siblings[i]
		switch rapid.IntRange(0, 6).Draw(t, name+".damage") {
		case 5:
			w.Expiry += 7
		case 6:
			w.State = !w.State

		case 1:
			w.Value = []byte{rapid.Byte().Draw(t, name+".value")}
		case 2:
			w.Deleted = !w.Deleted
		case 3:
			w.Stamp.Base.Index += uint64(rapid.IntRange(0, 2).Draw(t, name+".index"))
		case 4:
			w.ID.Time++
		}
	}
	return s
}

func checkInvariant(t interface{ Fatalf(string, ...any) }, s SiblingSet) {
	if !s.Context.valid() {
		t.Fatalf("vector not sorted: %v", s.Context)
	}
	for i := range s.Siblings {
		if i > 0 && s.Siblings[i-1].Dot.Compare(s.Siblings[i].Dot) >= 0 {
			t.Fatalf("siblings not sorted: %+v", s.Siblings)
		}
		if !s.Context.Covers(s.Siblings[i].Dot) {
			t.Fatalf("context %v does not cover %v", s.Context, s.Siblings[i].Dot)
		}
	}
}
