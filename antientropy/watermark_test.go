package antientropy

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

var errLost = errors.New("the message is lost")

// losing lets one replica lose the nth message that it sends: the request, or the answer to it.
type losing struct {
	n      int64
	answer bool
}

// requireSound checks what a watermark promises: every replica has promised it and holds all that is behind it.
func requireSound(t *testing.T, g []*replica, rows int, what string) (committed int) {
	t.Helper()
	var mark causal.HLC
	for _, r := range g {
		if c := r.engine.State().Repair(0).Committed; c > 0 {
			committed++
			mark = max(mark, c)
		}
	}
	if mark == 0 {
		return 0
	}
	for _, r := range g {
		require.GreaterOrEqual(t, r.engine.State().Repair(0).Promised, mark, "%s: node %d has not promised", what, r.id)
		require.Len(t, r.rows(t, 0), rows, "%s: node %d lacks rows from before the watermark", what, r.id)
	}
	return committed
}

func TestWatermarkIsSoundWhicheverMessageIsLost(t *testing.T) {
	cfg := DefaultConfig()
	raised := false
	for _, answer := range []bool{false, true} {
		for n := int64(1); ; n++ {
			what := fmt.Sprintf("message %d, answer %t", n, answer)
			g := group(t, 3, cfg)
			for i, r := range g {
				for k := range 3 {
					require.NoError(t, r.put(0, fmt.Appendf(nil, "key-%d-%d", i, k), sibling(uint64(i*10+k+1), "v")))
				}
			}
			o := g[0].service.deps.Owned()[0]
			g[0].lose = &losing{n: n, answer: answer}
			err := g[0].service.raise(t.Context(), o)
			committed := requireSound(t, g, 9, what)
			if g[0].lose.n > 0 { // it never sent so many
				require.NoError(t, err)
				require.Equal(t, 3, committed)
				raised = true
				break
			}
			require.Error(t, err, what)
			require.Less(t, committed, 3, what)
			require.NoError(t, g[0].service.raise(t.Context(), o), what)
			require.Equal(t, 3, requireSound(t, g, 9, what))
		}
	}
	require.True(t, raised)
}

func TestWatermarkWaitsForEveryReplica(t *testing.T) {
	for name, hinder := range map[string]func(g []*replica){
		"one is away":        func(g []*replica) { g[2].down.Store(true) },
		"one has lost rows":  func(g []*replica) { require.NoError(t, g[2].engine.BeginHealing(0)) },
		"the first has lost": func(g []*replica) { require.NoError(t, g[0].engine.BeginHealing(0)) },
		"one is quarantined": func(g []*replica) {
			require.NoError(t, g[1].engine.ChangeRepair(0, func(r *storage.RepairState) { r.Quarantined = true }))
		},
		"one clock is years behind": func(g []*replica) {
			g[1].service.deps.Now = func() (causal.HLC, error) { return 1 << 20, nil }
		},
		"one holds hints": func(g []*replica) { g[1].service.deps.Hints = unsettled{} },
	} {
		g := group(t, 3, DefaultConfig())
		hinder(g)
		_ = g[0].service.raise(t.Context(), g[0].service.deps.Owned()[0])
		for _, r := range g {
			require.Zero(t, r.engine.State().Repair(0).Committed, name)
		}
	}
	g := group(t, 3, DefaultConfig())
	require.ErrorIs(t, g[1].service.raise(t.Context(), g[1].service.deps.Owned()[0]), ErrNotOwner, "only the first owner leads")
}

// unsettled is a store of hints that always holds some.
type unsettled struct{}

func (unsettled) Settled(context.Context, kv.PartitionID, causal.HLC) (bool, error) {
	return false, nil
}

func (unsettled) Holders(kv.PartitionID) []kv.NodeID { return nil }
func (unsettled) Strike(kv.PartitionID, causal.HLC)  {}

func TestNoReplicaCommitsWhatItHasNotPromised(t *testing.T) {
	g := group(t, 2, DefaultConfig())
	require.ErrorIs(t, g[1].service.commit(0, 5), errNotNow)
	require.ErrorIs(t, g[1].service.promise(t.Context(), 0, ^causal.HLC(0)), errNotNow, "nobody promises the future")
	require.NoError(t, g[1].service.promise(t.Context(), 0, 5))
	require.NoError(t, g[1].service.commit(0, 5))
	require.NoError(t, g[1].service.commit(0, 3), "a late message lowers nothing")
	require.Equal(t, causal.HLC(5), g[1].engine.State().Repair(0).Committed)
}

// asked is a store of hints that keeps nothing, of a node that has asked others to.
type asked struct {
	nodes  []kv.NodeID
	struck *causal.HLC
}

func (asked) Settled(context.Context, kv.PartitionID, causal.HLC) (bool, error) { return true, nil }
func (a asked) Holders(kv.PartitionID) []kv.NodeID                              { return a.nodes }
func (a asked) Strike(_ kv.PartitionID, upTo causal.HLC)                        { *a.struck = upTo }

func TestWatermarkAsksWhomAnyOwnerAsked(t *testing.T) {
	for name, test := range map[string]struct {
		asked    []kv.NodeID // by the second owner
		anywhere bool        // the second owner does not know
		members  []kv.NodeID
		waits    bool
	}{
		"nobody was asked":               {members: []kv.NodeID{1, 2, 3, 4}},
		"a dead one was":                 {asked: []kv.NodeID{4}, members: []kv.NodeID{1, 2, 3, 4}, waits: true},
		"one that has left was":          {asked: []kv.NodeID{4}, members: []kv.NodeID{1, 2, 3}},
		"nobody knows whether one was":   {anywhere: true, members: []kv.NodeID{1, 2, 3, 4}, waits: true},
		"nobody knows, and all are here": {anywhere: true, members: []kv.NodeID{1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			g := group(t, 4, DefaultConfig())
			owners := []kv.NodeID{1, 2, 3}
			struck := make([]causal.HLC, 4)
			for i, r := range g {
				r.service.deps.Owned = func() []Owned { return []Owned{{Partition: 0, Epoch: 1, Owners: owners}} }
				r.service.deps.Members = func() []kv.NodeID { return test.members }
				r.service.deps.Hints = asked{struck: &struck[i]}
			}
			g[1].service.deps.Hints = asked{nodes: test.asked, struck: &struck[1]}
			require.NoError(t, g[1].engine.ChangeRepair(0, func(r *storage.RepairState) { r.HintsAnywhere = test.anywhere }))
			g[3].down.Store(true)
			err := g[0].service.raise(t.Context(), g[0].service.deps.Owned()[0])
			if test.waits {
				require.Error(t, err)
				require.Zero(t, struck[1])
				require.Zero(t, g[0].engine.State().Repair(0).Committed)
				require.Equal(t, test.anywhere, g[1].engine.State().Repair(0).HintsAnywhere)
				g[3].down.Store(false)
				err = g[0].service.raise(t.Context(), g[0].service.deps.Owned()[0])
			}
			require.NoError(t, err)
			mark := g[1].engine.State().Repair(0).Committed
			require.NotZero(t, mark)
			require.Equal(t, mark, struck[1])
			require.False(t, g[1].engine.State().Repair(0).HintsAnywhere, "all were asked")
		})
	}
}
