package consensus

import (
	"bytes"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// testMachine applies entries to an engine of its own.
type testMachine struct {
	// ahead has entries decoded before they are applied.
	ahead  bool
	t      failer
	fs     *vfs.MemFS
	engine *storage.Engine
	m      *kvMachine
	index  uint64
	now    time.Duration // since 1970, of the entries
	term   uint64
	uptime time.Duration // of the leader
}

// failer is what *testing.T and *rapid.T share.
type failer interface {
	require.TestingT
	Helper()
}

const machineGroup = kv.GroupID(1)

func newTestMachine(t failer) *testMachine {
	fs := storage.NewCrashableMemFS()
	cfg := storage.DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 1<<20, 1<<20
	e, err := storage.Open("data", cfg, storage.Deps{FS: fs})
	require.NoError(t, err)
	return &testMachine{t: t, fs: fs, engine: e, m: &kvMachine{state: e.State()}, index: 1, now: 400_000 * time.Hour, term: 1}
}

// apply applies one entry with the commands.
func (tm *testMachine) apply(commands ...[]byte) []*WriteReply {
	tm.t.Helper()
	tm.index++
	e := Committed{
		Group: machineGroup, Pos: causal.Position{Term: tm.term, Index: tm.index},
		Time: causal.MakeHLC(tm.now.Milliseconds(), 0), Uptime: tm.uptime, Proposer: 1, Commands: commands,
	}
	b := tm.engine.NewBatch()
	defer b.Close()
	var err error
	if tm.ahead {
		e.decoded, err = decodeCommands(&e)
		require.NoError(tm.t, err)
	}
	replies, err := tm.m.Apply(b, e)
	require.NoError(tm.t, err)
	b.SetApplied(machineGroup, storage.Applied{Index: tm.index, Term: tm.term})
	require.NoError(tm.t, tm.engine.ApplyNoSync(b))
	out := make([]*WriteReply, len(replies))
	for i := range replies {
		out[i] = replies[i].(*WriteReply)
	}
	return out
}

func (tm *testMachine) write(op WriteOp) WriteReply {
	tm.t.Helper()
	return *tm.apply(encodeCommand(op))[0]
}

func (tm *testMachine) close() { require.NoError(tm.t, tm.engine.Close()) }

// rows closes the machine and returns everything that its disk holds.
func (tm *testMachine) rows() map[string]string {
	tm.t.Helper()
	tm.close()
	db, err := pebble.Open("data", &pebble.Options{FS: tm.fs, FormatMajorVersion: pebble.FormatNewest, ErrorIfNotExists: true})
	require.NoError(tm.t, err)
	it, err := db.NewIter(nil)
	require.NoError(tm.t, err)
	out := make(map[string]string)
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key())] = string(it.Value())
	}
	require.NoError(tm.t, it.Close())
	require.NoError(tm.t, db.Close())
	return out
}

func put(key, value string, id kv.OpID) WriteOp {
	return WriteOp{Key: []byte(key), Value: []byte(value), ID: id}
}

func opID(session string, sequence, floor uint64) kv.OpID {
	return kv.OpID{Session: []byte(session), Sequence: sequence, Floor: floor}
}

func TestRepeatedOperationIsAnsweredAndNotApplied(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	first := tm.write(put("k", "a", opID("s", 4, 2)))
	require.True(t, first.Applied)
	tm.write(put("k", "b", opID("s", 5, 2)))
	again := tm.write(put("k", "a", opID("s", 4, 3)))
	require.True(t, again.Repeated)
	again.Repeated = false
	require.Equal(t, first, again)
	s, _, err := tm.engine.State().Strong(machineGroup, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "b", string(s.Value))
	// A missed condition is an outcome too: what it missed may have become true since.
	absent := put("new", "x", opID("s", 6, 4))
	absent.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: 9}
	missed := tm.write(absent)
	require.False(t, missed.Applied)
	again = tm.write(absent)
	require.True(t, again.Repeated)
	require.False(t, again.Applied)
	// A delete remembers that there was something to delete.
	del := WriteOp{Key: []byte("k"), Delete: true, ID: opID("s", 7, 6)}
	require.True(t, tm.write(del).Found)
	require.True(t, tm.write(del).Found)
	reply, found, err := recall(tm.engine.State(), machineGroup, opID("s", 7, 0))
	require.NoError(t, err)
	require.True(t, found && reply.Applied && reply.Found)
	_, found, err = recall(tm.engine.State(), machineGroup, opID("s", 4, 0))
	require.NoError(t, err)
	require.False(t, found, "the client no longer asks for what lies below its floor")
}

func TestIDGivenToAnotherRequestIsRefused(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	tm.write(put("k", "a", opID("s", 0, 0)))
	for name, op := range map[string]WriteOp{
		"another value":     put("k", "b", opID("s", 0, 0)),
		"another key":       put("l", "a", opID("s", 0, 0)),
		"another operation": {Key: []byte("k"), Delete: true, ID: opID("s", 0, 0)},
		"a condition":       {Key: []byte("k"), Value: []byte("a"), Condition: kv.Condition{Kind: kv.ConditionExists}, ID: opID("s", 0, 0)},
	} {
		require.Equal(t, WriteReply{Refused: RefusedReuse}, tm.write(op), name)
	}
	s, _, err := tm.engine.State().Strong(machineGroup, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "a", string(s.Value))
}

func TestOneEntryThatHoldsAnOperationTwiceAppliesItOnce(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	// The packer keeps commands of one key apart; the machine does not rely on it.
	raw := encodeCommand(WriteOp{
		Key: []byte("k"), Value: []byte("v"), Condition: kv.Condition{Kind: kv.ConditionVersion}, ID: opID("s", 1, 0),
	})
	replies := tm.apply(raw, raw, encodeCommand(put("l", "v", opID("s", 1, 0))))
	require.True(t, replies[0].Applied && !replies[0].Repeated)
	require.True(t, replies[1].Applied && replies[1].Repeated)
	require.Equal(t, replies[0].Revision, replies[1].Revision)
	require.Equal(t, RefusedReuse, replies[2].Refused)
}

func TestWriteBelowTheFloorIsNotApplied(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	tm.write(put("k", "new", opID("s", 9, 9)))
	// An attempt that was under way for so long that its client has given up.
	require.Equal(t, WriteReply{Refused: RefusedForgotten}, tm.write(put("k", "old", opID("s", 8, 3))))
	s, _, err := tm.engine.State().Strong(machineGroup, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "new", string(s.Value))
}

func TestSessionIsBounded(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	for i := range uint64(sessionRecordsMax + 10) {
		tm.write(put("k", "v", opID("s", i, 0)))
	}
	s, err := readSession(tm.engine.State(), machineGroup, []byte("s"), 0)
	require.NoError(t, err)
	require.Len(t, s.records, sessionRecordsMax)
	require.Equal(t, RefusedForgotten, tm.write(put("k", "v", opID("s", 9, 0))).Refused, "forgotten is not new")
	require.True(t, tm.write(put("k", "v", opID("s", 10, 0))).Repeated)
}

func TestBatchIsAppliedWholeOrNotAtAll(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	tm.write(put("a", "1", kv.OpID{}))
	exists := kv.Condition{Kind: kv.ConditionExists}
	batch := WriteOp{Batch: []WriteOp{
		put("b", "2", kv.OpID{}), {Key: []byte("a"), Delete: true, Condition: exists}, {Key: []byte("c"), Value: []byte("3"), Condition: exists},
	}, ID: opID("s", 1, 1)}
	for _, repeated := range []bool{false, true} {
		require.Equal(t, WriteReply{Missed: 2, Repeated: repeated}, tm.write(batch))
		_, found, err := tm.engine.State().Strong(machineGroup, []byte("b"))
		require.NoError(t, err)
		require.False(t, found)
	}
	batch.Batch[2].Condition, batch.ID = kv.Condition{Kind: kv.ConditionVersion}, opID("s", 2, 1)
	first := tm.write(batch)
	require.True(t, first.Applied)
	require.Equal(t, []bool{false, true, false}, first.Items)
	again := tm.write(batch)
	require.True(t, again.Repeated)
	again.Repeated = false
	require.Equal(t, first, again)
	for _, key := range []string{"a", "b", "c"} {
		s, _, err := tm.engine.State().Strong(machineGroup, []byte(key))
		require.NoError(t, err)
		require.Equal(t, first.Revision, s.Revision)
		require.Equal(t, key == "a", s.Deleted)
	}
}

// expire removes, as a leader does, what has expired by now.
func (tm *testMachine) expire(t failer) int {
	var keys []Expiring
	err := tm.engine.State().ScanExpiry(machineGroup, causal.MakeHLC(tm.now.Milliseconds(), 0), func(at causal.HLC, key []byte) (bool, error) {
		keys = append(keys, Expiring{At: at, Key: key})
		return true, nil
	})
	require.NoError(t, err)
	if len(keys) > 0 {
		tm.apply(encodeExpire(keys))
	}
	return len(keys)
}

func TestValueIsThereUntilItsTimeAndNotLonger(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	op := put("k", "v", kv.OpID{})
	op.TTL = 10 * time.Second
	stamp := tm.write(op).Stamp
	exists := WriteOp{Key: []byte("k"), Value: []byte("w"), Condition: kv.Condition{Kind: kv.ConditionVersion, Version: 2}}
	tm.now += 10*time.Second - time.Millisecond
	require.Zero(t, tm.expire(t), "nothing is due")
	tm.apply(encodeExpire([]Expiring{{At: stamp.Time + 10_000<<16, Key: []byte("k")}}))
	state := func() storage.Strong {
		s, _, err := tm.engine.State().Strong(machineGroup, []byte("k"))
		require.NoError(t, err)
		return s
	}
	require.Equal(t, "v", string(state().Value), "an entry before its time does not remove it")
	tm.now += time.Millisecond
	reply := tm.write(exists)
	require.False(t, reply.Applied || reply.Found)
	require.Zero(t, reply.Revision, "the key is absent")
	// The clock of the next leader is behind: what was answered as gone stays gone.
	tm.now -= 5 * time.Second
	require.False(t, tm.write(exists).Applied)
	require.True(t, state().Deleted)
	require.Equal(t, stamp, state().Stamp, "a later eventual write is not covered by the end of the value")
	require.False(t, tm.write(WriteOp{Key: []byte("k"), Delete: true}).Found)
}

func TestExpiryRemovesOnlyTheValueItWasMeantFor(t *testing.T) {
	tm := newTestMachine(t)
	op := put("replaced", "v", kv.OpID{})
	op.TTL = time.Second
	tm.write(op)
	tm.write(put("replaced", "for ever", kv.OpID{}))
	op.Key = []byte("longer")
	tm.write(op)
	op.TTL = time.Hour
	tm.write(op)
	op.Key, op.TTL = []byte("gone"), time.Second
	tm.write(op)
	tm.now += time.Minute
	require.Equal(t, 3, tm.expire(t))
	require.Zero(t, tm.expire(t), "the index is clean")
	for key, live := range map[string]bool{"replaced": true, "longer": true, "gone": false} {
		s, found, err := tm.engine.State().Strong(machineGroup, []byte(key))
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, live, !s.Deleted, key)
	}
	notes := 0
	for key := range tm.rows() {
		if bytes.HasPrefix([]byte(key), []byte{1, 0, 0, 0, 1, 0x21}) {
			notes++
		}
	}
	require.Equal(t, 1, notes, "that of the value that is there")
}

func TestWritesOfABatchHaveStampsOfTheirOwn(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	tm.write(put("asks", "old", kv.OpID{}))
	state := func(key string) storage.Strong {
		s, _, err := tm.engine.State().Strong(machineGroup, []byte(key))
		require.NoError(t, err)
		return s
	}
	for _, keys := range [][2]string{{"blind", "asks"}, {"asks", "blind"}} {
		old := state("asks")
		promised := causal.MakeHLC(tm.now.Milliseconds(), 7)
		tm.now += time.Second
		op := WriteOp{Guard: &Guard{Writes: make([]Expectation, 2)}, Batch: make([]WriteOp, 2)}
		for i, key := range keys {
			op.Batch[i] = put(key, "new", kv.OpID{})
			op.Guard.Writes[i] = Expectation{Any: true}
			if key == "asks" {
				op.Guard.Writes[i] = Expectation{Revision: old.Revision, Time: promised}
			}
		}
		require.True(t, tm.write(op).Applied)
		own := causal.Stamp{Base: causal.Position{Term: tm.term, Index: tm.index}, Time: causal.MakeHLC(tm.now.Milliseconds(), 0), Node: 1}
		require.Equal(t, own, state("blind").Stamp, "a put that asked nobody is above all that is stamped before its entry")
		require.Equal(t, causal.Stamp{Base: old.Stamp.Base, Time: promised, Node: 1}, state("asks").Stamp,
			"what was acknowledged after the promise, before the entry, follows a write that was judged")
	}
}
