package consensus

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// A restart reads what it needs, not the log: the applied index is on disk and nothing is replayed from the start.
func TestRestartIsQuickWithALongLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 0)
		defer c.close()
		c.start(1)
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		require.NoError(t, c.stop(1))
		entries := uint64(200_000)
		appendEntries(t, n, 1, entries)

		c.start(1)
		var window int
		onLoop(n.store, func(l *loop) { window = len(l.groups[1].log.win.entries) })
		require.Less(t, window, 10, "the log was loaded into memory")
		_, err := c.put(c.timeout(10*time.Second), 0, "k", "v")
		require.NoError(t, err)
		st, _ := n.store.Status(1)
		require.Greater(t, st.Applied, entries)
		require.InDelta(t, float64(st.Applied-entries), testutil.ToFloat64(n.store.metrics.applied), 10)
	})
}

// appendEntries adds applied entries to a stopped node's log, as a long life would have.
func appendEntries(t *testing.T, n *node, g kv.GroupID, count uint64) {
	cfg := storage.DefaultConfig()
	cfg.CacheBytes = 8 << 20
	e, err := storage.Open("data", cfg, storage.Deps{FS: n.fs})
	require.NoError(t, err)
	last, _, err := e.Log().LastEntry(g)
	require.NoError(t, err)
	conf, _, err := e.Log().Applied(g)
	require.NoError(t, err)
	command := encodeCommand(WriteOp{Key: []byte("key"), Value: []byte("0123456789")})
	data := appendBytes(appendEntryHeader(nil, entryHeader{proposer: 1, sequence: 1, time: 1, commands: 1}), command)
	for done := uint64(0); done < count; {
		b := e.NewBatch()
		for range min(10_000, count-done) {
			done++
			b.AppendEntry(g, storage.LogEntry{Index: last.Index + done, Term: last.Term, Data: data})
		}
		end := last.Index + done
		b.SetHardState(g, storage.HardState{Term: last.Term, Vote: 1, Commit: end})
		b.SetApplied(g, storage.Applied{Index: end, Term: last.Term, ConfState: conf.ConfState})
		require.NoError(t, e.ApplyNoSync(b))
		b.Close()
	}
	require.NoError(t, e.Close())
}

// A follower that was away for longer than the window reaches back is caught up from storage.
func TestFollowerBehindTheWindowCatchesUpFromStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.WindowBytes, c.cfg.AppendBytesMax = 4<<10, 8<<10
		defer c.close()
		c.startAll()
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		late := c.others(n.id)[0]
		require.NoError(t, c.stop(late))
		ctx := c.timeout(time.Minute)
		for i := range 200 {
			_, err := c.put(ctx, 0, value(i), fmt.Sprintf("%01000d", i))
			require.NoError(t, err)
		}
		c.start(late)
		time.Sleep(3 * time.Second)
		require.Equal(t, c.dump(1, n.id), c.dump(1, late))
		require.Len(t, c.dump(1, late), 200)
	})
}

func TestCorruptLogIsAnErrorThatNamesTheGroup(t *testing.T) {
	for name, spoil := range map[string]func(b *storage.Batch){
		"commit beyond the log": func(b *storage.Batch) { b.SetHardState(1, storage.HardState{Term: 9, Commit: 99}) },
		"unknown configuration": func(b *storage.Batch) {
			b.SetApplied(1, storage.Applied{Index: 1, Term: 1, ConfState: []byte{42}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := storage.OpenInMemory()
			require.NoError(t, err)
			defer func() { require.NoError(t, e.Close()) }()
			clock, err := newTestClock(e)
			require.NoError(t, err)
			deps := Deps{Self: 1, Engine: e, Clock: clock, Sender: sender{}, Puller: puller{}}
			s, err := New(DefaultConfig(), deps)
			require.NoError(t, err)
			require.NoError(t, s.Bootstrap(1, []kv.NodeID{1}))
			b := e.NewBatch()
			spoil(b)
			require.NoError(t, e.ApplySync(b))
			b.Close()
			_, err = New(DefaultConfig(), deps)
			require.ErrorIs(t, err, storage.ErrCorruption)
			require.ErrorContains(t, err, "group 1")
		})
	}
}

// An entry lost in the middle of the log is met when a follower needs it. The replica stops; the store goes on.
func TestReplicaStopsAtAHoleInItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, time.Millisecond)
		c.cfg.WindowBytes = 1
		defer c.close()
		c.startAll()
		c.bootstrap(1, 2)
		n, _ := c.awaitLeader(1, 5*time.Second)
		late := c.others(n.id)[0]
		require.NoError(t, c.stop(late))
		ctx := c.timeout(time.Minute)
		var hole uint64
		for i := range 20 {
			r, err := c.put(ctx, 0, value(i), value(i))
			require.NoError(t, err)
			if i == 10 {
				hole = r.Revision
			}
		}
		last, _, err := n.engine.Log().LastEntry(1)
		require.NoError(t, err)
		kept, err := n.engine.Log().Entries(1, hole+1, last.Index+1, math.MaxUint64)
		require.NoError(t, err)
		b := n.engine.NewBatch()
		b.DeleteEntriesFrom(1, 0)
		for _, e := range kept {
			b.AppendEntry(1, e)
		}
		require.NoError(t, n.engine.ApplySync(b))
		b.Close()
		c.start(late)
		time.Sleep(2 * time.Second)
		st, _ := n.store.Status(1)
		require.Equal(t, "stopped", st.State)
		_, err = c.put(ctx, 1, "k", "v")
		require.NoError(t, err)
		select {
		case err := <-n.done:
			t.Fatal("the store stopped:", err)
		default:
		}
	})
}
