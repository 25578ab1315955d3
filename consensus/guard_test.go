package consensus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func (tm *testMachine) state(key string) storage.Strong {
	tm.t.Helper()
	s, found, err := tm.engine.State().Strong(machineGroup, []byte(key))
	require.NoError(tm.t, err)
	require.True(tm.t, found, key)
	return s
}

func judgedBy(x ...Expectation) *Guard { return &Guard{Writes: x} }

func writeID(node kv.NodeID, ms int64) causal.Dot {
	return causal.Dot{Node: node, Time: causal.MakeHLC(ms, 0)}
}

// settleOf takes in a version that was stamped on the base, if the key's state is still the one of the revision.
func settleOf(key, value string, id causal.Dot, base causal.Position, revision uint64) WriteOp {
	return WriteOp{
		Key: []byte(key), Value: []byte(value), Guard: judgedBy(Expectation{Revision: revision}),
		Settled: &Settled{ID: id, Stamp: causal.Stamp{Base: base, Time: id.Time, Node: id.Node}},
	}
}

func TestSettleDoesNothingOnceTheStateHasChanged(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	judged := tm.write(put("k", "judged by", kv.OpID{})).Revision
	above := causal.Position{Term: 1, Index: judged}
	tm.write(put("k", "newer", kv.OpID{}))
	before := tm.state("k")
	for _, revision := range []uint64{0, judged} {
		reply := tm.write(settleOf("k", "late", writeID(2, 9), above, revision))
		require.True(t, reply.Overtaken)
		require.False(t, reply.Applied)
		require.Equal(t, before, tm.state("k"))
	}
	// Of the right revision, but stamped below the state: it would take the key back.
	reply := tm.write(settleOf("k", "late", writeID(2, 9), above, before.Revision))
	require.True(t, reply.Overtaken)
	require.Equal(t, before, tm.state("k"))
}

// Versions that are acknowledged while a settle is under way are stamped above the winner, and below its entry's position.
func TestSettleKeepsTheWinnersStampAndExpiryAndCoversItAlone(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	first := tm.write(put("k", "first", kv.OpID{}))
	id := writeID(2, tm.now.Milliseconds()+7)
	op := settleOf("k", "winner", id, causal.Position{Term: 1, Index: first.Revision}, first.Revision)
	op.Settled.Expiry = causal.MakeHLC((tm.now + time.Hour).Milliseconds(), 0)
	reply := tm.write(op)
	require.True(t, reply.Applied)
	require.Equal(t, op.Settled.Stamp, reply.Stamp)
	s := tm.state("k")
	require.Equal(t, "winner", string(s.Value))
	require.Equal(t, op.Settled.Stamp, s.Stamp)
	require.Equal(t, op.Settled.Expiry, s.Expiry)
	require.Equal(t, []causal.Dot{id}, s.Covered)
	require.Equal(t, tm.index, s.Revision, "the entry's, so that what was judged before does nothing")

	deletion := settleOf("k", "", writeID(3, tm.now.Milliseconds()+8), causal.Position{Term: 1, Index: first.Revision}, s.Revision)
	deletion.Delete = true
	require.True(t, tm.write(deletion).Applied)
	s = tm.state("k")
	require.True(t, s.Deleted)
	require.Zero(t, s.Expiry)
	require.Equal(t, []causal.Dot{id, deletion.Settled.ID}, s.Covered, "a winner stays covered")
}

// Whatever comes later, an attempt of a write that took effect must not take effect again.
func TestEveryWriteKeepsWhatItsKeyCovers(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	id := writeID(2, tm.now.Milliseconds())
	require.True(t, tm.write(settleOf("k", "winner", id, causal.Position{Term: 1, Index: 1}, 0)).Applied)
	expiring := put("k", "for a while", kv.OpID{})
	expiring.TTL = time.Hour
	conditional := put("k", "conditional", kv.OpID{})
	conditional.Condition = kv.Condition{Kind: kv.ConditionExists}
	batch := WriteOp{Batch: []WriteOp{put("k", "of a batch", kv.OpID{}), put("other", "v", kv.OpID{})}}
	for _, op := range []WriteOp{
		put("k", "blind", kv.OpID{}), expiring, conditional, batch, put("k", "with an id", opID("s", 1, 1)), {Key: []byte("k"), Delete: true},
	} {
		require.True(t, tm.write(op).Applied)
		require.Equal(t, []causal.Dot{id}, tm.state("k").Covered, "%s", op.Value)
	}
	require.Empty(t, tm.state("other").Covered)

	more := put("k", "replaces what was found", kv.OpID{})
	more.Guard = judgedBy(Expectation{Revision: tm.state("k").Revision, Covers: []causal.Dot{writeID(3, 1), writeID(4, 1)}})
	require.True(t, tm.write(more).Applied)
	require.Equal(t, []causal.Dot{id, writeID(3, 1), writeID(4, 1)}, tm.state("k").Covered)
}

// Replicas differ in what they know to be absent, from filters that are filled in the background; what a write does and answers
// must be the same on all of them.
func TestAnswerOfAPutIsTheSameWhateverIsKnownToBeAbsent(t *testing.T) {
	knows, ignorant := newTestMachine(t), newTestMachine(t)
	defer knows.close()
	defer ignorant.close()
	require.Eventually(t, func() bool { return knows.engine.State().CoversNothing(machineGroup, []byte("never written")) },
		10*time.Second, time.Millisecond)
	settled := settleOf("covering", "v", writeID(2, 5), causal.Position{Term: 1, Index: 1}, 0)
	for _, op := range []WriteOp{
		put("k", "a", kv.OpID{}), put("k", "b", kv.OpID{}), settled, put("covering", "c", kv.OpID{}), put("covering", "d", opID("s", 1, 1)),
		{Key: []byte("k"), Delete: true},
		put("k", "e", kv.OpID{}),
	} {
		// One entry of the ignorant one's is applied by an engine that has just been opened and has filled no filter.
		ignorant.reopen()
		require.Equal(t, knows.write(op), ignorant.write(op), "%s %s", op.Key, op.Value)
	}
	for _, key := range []string{"k", "covering"} {
		require.Equal(t, knows.state(key), ignorant.state(key))
	}
}

// reopen opens the machine's engine again, which forgets what is in memory only.
func (tm *testMachine) reopen() {
	tm.t.Helper()
	tm.close()
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
	e, err := storage.Open("data", cfg, storage.Deps{FS: tm.fs})
	require.NoError(tm.t, err)
	tm.engine, tm.m = e, &kvMachine{state: e.State()}
}

// The stamp of a write that answers from the old value is above everything that was found and below everything that is
// accepted later, which is stamped above the promise on the same base.
func TestGuardedWriteIsStampedAtThePromiseOnTheBaseOfWhatItReplaces(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	first := tm.write(put("k", "first", kv.OpID{}))
	promised := causal.MakeHLC(tm.now.Milliseconds()+50, 0)
	op := put("k", "second", kv.OpID{})
	op.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: first.Revision}
	op.Guard = judgedBy(Expectation{Revision: first.Revision, Time: promised})
	reply := tm.write(op)
	require.True(t, reply.Applied)
	s := tm.state("k")
	require.Equal(t, causal.Stamp{Base: first.Stamp.Base, Time: promised, Node: 1}, s.Stamp)

	again := tm.write(op)
	require.True(t, again.Overtaken, "it was judged by a state that is gone")
	require.Equal(t, s, tm.state("k"))
	op.ID = opID("s", 1, 1)
	require.True(t, tm.write(op).Overtaken)
	op.Condition.Version, op.Guard = s.Revision, judgedBy(Expectation{Revision: s.Revision, Time: promised + 1})
	reply = tm.write(op)
	require.False(t, reply.Repeated, "to be overtaken is no outcome that a session remembers")
	require.True(t, reply.Applied)
}

func TestBatchDoesNothingWhenTheStateOfOneOfItsKeysHasChanged(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	a := tm.write(put("a", "1", kv.OpID{}))
	b := tm.write(put("b", "1", kv.OpID{}))
	tm.write(put("b", "2", kv.OpID{}))
	reply := tm.write(WriteOp{
		Batch: []WriteOp{put("c", "new", kv.OpID{}), put("a", "new", kv.OpID{}), put("b", "new", kv.OpID{})},
		Guard: judgedBy(Expectation{Any: true}, Expectation{Revision: a.Revision}, Expectation{Revision: b.Revision}),
	})
	require.True(t, reply.Overtaken)
	require.Equal(t, "1", string(tm.state("a").Value))
	require.Equal(t, "2", string(tm.state("b").Value))
	_, found, err := tm.engine.State().Strong(machineGroup, []byte("c"))
	require.NoError(t, err)
	require.False(t, found)
}
