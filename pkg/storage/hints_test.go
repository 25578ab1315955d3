package storage

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func hintSet(value string) causal.SiblingSet {
	dot := causal.Dot{Node: 1, Time: causal.MakeHLC(10, 1)}
	return causal.SiblingSet{}.Put(causal.Sibling{
		ID: dot, Dot: dot, Stamp: causal.Stamp{Time: dot.Time, Node: 1}, Value: []byte(value),
	}, nil)
}

func TestHintsComeBackInOrderForTheirTargetAndPartitionOnly(t *testing.T) {
	e, err := OpenInMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	b := e.NewBatch()
	for _, target := range []kv.NodeID{2, 3} {
		for _, p := range []kv.PartitionID{0, 1} {
			for _, seq := range []causal.HLC{3, 1, 2} {
				b.SetHint(HintID{target, p, seq}, []byte("k"), hintSet("v"))
			}
		}
	}
	require.NoError(t, e.ApplySync(b))
	b.Close()

	var all int
	require.NoError(t, e.State().ScanHintIDs(func(_ HintID, bytes int) bool {
		require.Equal(t, HintBytes([]byte("k"), hintSet("v")), bytes)
		all++
		return true
	}))
	require.Equal(t, 12, all)

	b = e.NewBatch()
	b.DeleteHint(HintID{2, 1, 2})
	require.NoError(t, e.ApplySync(b))
	b.Close()
	var seqs []causal.HLC
	require.NoError(t, e.State().ScanHints(HintID{Target: 2, Partition: 1}, func(h Hint, damaged error) bool {
		require.NoError(t, damaged)
		require.Equal(t, "k", string(h.Key))
		require.True(t, h.Set.Equal(hintSet("v")))
		seqs = append(seqs, h.ID.Seq)
		return true
	}))
	require.Equal(t, []causal.HLC{1, 3}, seqs)
}

func TestHintThatCannotBeReadIsReportedAndTheNextOneIsNot(t *testing.T) {
	e, err := OpenInMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	b := e.NewBatch()
	b.key = appendHintKey(b.key[:0], HintID{2, 1, 1})
	b.put(formatHint, []byte{200}, nil)
	b.SetHint(HintID{2, 1, 2}, []byte("k"), hintSet("v"))
	require.NoError(t, e.ApplySync(b))
	b.Close()
	var damages []bool
	require.NoError(t, e.State().ScanHints(HintID{Target: 2, Partition: 1}, func(_ Hint, damaged error) bool {
		damages = append(damages, damaged != nil)
		return true
	}))
	require.Equal(t, []bool{true, false}, damages)
}
