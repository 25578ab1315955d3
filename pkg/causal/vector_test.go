package causal

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestVectorsAgreeWithTheDotsTheyCover(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawVector(t, "a"), drawVector(t, "b")
		d := Dot{
			Node: kv.NodeID(rapid.IntRange(1, universeNodes).Draw(t, "node")),
			Time: HLC(rapid.IntRange(1, universeTimes).Draw(t, "time")),
		}
		joined, with := a.Join(b), a.With(d)
		if !joined.valid() || !with.valid() {
			t.Fatalf("not sorted: %v, %v", joined, with)
		}
		dominates := true
		for _, o := range universe() {
			if joined.Covers(o) != (a.Covers(o) || b.Covers(o)) {
				t.Fatalf("join of %v and %v at %v", a, b, o)
			}
			if with.Covers(o) != (a.Covers(o) || o.Node == d.Node && o.Time <= d.Time) {
				t.Fatalf("%v with %v at %v", a, d, o)
			}
			dominates = dominates && (a.Covers(o) || !b.Covers(o))
		}
		if a.Dominates(b) != dominates {
			t.Fatalf("%v dominates %v: %v", a, b, a.Dominates(b))
		}
		if a.Equal(b) != (a.Dominates(b) && b.Dominates(a)) {
			t.Fatalf("%v equals %v: %v", a, b, a.Equal(b))
		}
		if a.Latest() > d.Time && !a.With(Dot{Node: d.Node, Time: a.Latest()}).Covers(d) {
			t.Fatalf("the latest of %v is not its highest", a)
		}
	})
}

func TestVectorWithLeavesTheOriginalAlone(t *testing.T) {
	v := Vector{{1, 5}, {3, 5}}
	require.Equal(t, Vector{{1, 5}, {2, 1}, {3, 5}}, v.With(Dot{2, 1}))
	require.Equal(t, Vector{{1, 9}, {3, 5}}, v.With(Dot{1, 9}))
	require.Equal(t, Vector{{1, 5}, {3, 5}}, v)
	require.Equal(t, HLC(5), v.Latest())
	require.Zero(t, Vector(nil).Latest())
}

func TestStampsCompareLogPositionBeforeClockBeforeNode(t *testing.T) {
	// Each is after the one before it.
	order := []Stamp{
		{},
		{Time: 1 << 60, Node: 9},
		{Base: Position{1, 7}, Time: 2, Node: 9},
		{Base: Position{1, 8}, Time: 1, Node: 1},
		{Base: Position{1, 8}, Time: 1, Node: 2},
		{Base: Position{1, 8}, Time: 2, Node: 1},
		{Base: Position{2, 1}, Time: 1, Node: 1},
	}
	for i := range order {
		for j := range order {
			require.Equal(t, i > j, order[i].After(order[j]), "%v after %v", order[i], order[j])
		}
	}
	require.True(t, Stamp{}.IsZero())
	require.True(t, Position{}.IsZero())
	require.True(t, Dot{}.IsZero())
	require.False(t, order[1].IsZero())
}
