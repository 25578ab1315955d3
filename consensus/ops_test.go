package consensus

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// holdLoop stops the loop of a store until the returned function is called, or the test ends.
func (c *cluster) holdLoop(s *Store) (resume func()) {
	gate, held := make(chan struct{}), make(chan struct{})
	s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(*loop) {
			close(held)
			<-gate
		})
		return true
	})
	<-held
	resume = sync.OnceFunc(func() { close(gate) })
	c.atEnd(resume)
	return resume
}

// onLoop runs f on the loop and waits for it.
func onLoop(s *Store, f func(*loop)) {
	done := make(chan struct{})
	s.inbox.post(func(m *mail) bool {
		m.controls = append(m.controls, func(l *loop) {
			f(l)
			close(done)
		})
		return true
	})
	<-done
}

type outcome struct {
	reply WriteReply
	err   error
}

func putAsync(ctx context.Context, s *Store, p kv.PartitionID, op WriteOp) chan outcome {
	out := make(chan outcome, 1)
	go func() {
		r, err := s.Write(ctx, p, op)
		out <- outcome{r, err}
	}()
	return out
}

func TestPackedWritesOfOneKeyKeepTheirOrder(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		ctx := c.timeout(10 * time.Second)
		resume := c.holdLoop(n.store)
		var hot, others []chan outcome
		for i := range 40 {
			hot = append(hot, putAsync(ctx, n.store, 0, WriteOp{Key: []byte("hot"), Value: []byte(value(i))}))
			synctest.Wait() // so that it is queued before the next
			others = append(others, putAsync(ctx, n.store, 0, WriteOp{Key: []byte(value(i)), Value: []byte("x")}))
			synctest.Wait()
		}
		before := n.store.Base(1).Index
		resume()
		revision := uint64(0)
		for i, ch := range hot {
			o := <-ch
			require.NoError(t, o.err)
			require.Greater(t, o.reply.Revision, revision, "write %d", i)
			revision = o.reply.Revision
		}
		packed := map[uint64]int{}
		for _, ch := range others {
			o := <-ch
			require.NoError(t, o.err)
			packed[o.reply.Revision]++
		}
		require.Equal(t, map[uint64]int{before + 1: 40}, packed, "distinct keys share the first entry")
		require.Equal(t, before+40, n.store.Base(1).Index)
		s, _, err := c.get(ctx, 0, "hot")
		require.NoError(t, err)
		require.Equal(t, value(39), string(s.Value))
	})
}

// Conditional writes of one key that become committed together still see one another: each entry reads what the one
// before wrote, although all are applied in one iteration.
func TestEntriesAppliedTogetherSeeOneAnother(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		ctx := c.timeout(10 * time.Second)
		resume := c.holdLoop(n.store)
		var all []chan outcome
		for i := range 6 {
			all = append(all, putAsync(ctx, n.store, 0, WriteOp{
				Key: []byte("once"), Value: []byte(value(i)), Condition: kv.Condition{Kind: kv.ConditionVersion},
			}))
			synctest.Wait()
		}
		resume()
		for i, ch := range all {
			o := <-ch
			require.NoError(t, o.err)
			require.Equal(t, i == 0, o.reply.Applied, "create %d", i)
		}
		time.Sleep(time.Second)
		for _, id := range c.ids {
			require.Equal(t, value(0), string(c.dump(1, id)["once"].Value))
		}
	})
}

func TestDeadlineBeforeTheProposalMeansNotApplied(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		resume := c.holdLoop(n.store)
		out := putAsync(c.timeout(100*time.Millisecond), n.store, 0, WriteOp{Key: []byte("k"), Value: []byte("v")})
		e := kv.AsError((<-out).err)
		require.Equal(t, kv.CodeDeadlineExceeded, e.Code)
		require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		resume()
		_, found, err := c.get(c.timeout(time.Second), 0, "k")
		require.NoError(t, err)
		require.False(t, found)
		synctest.Wait() // the loop had to move the clock's ceiling first
		require.Zero(t, n.store.pendingBytes.Load())
	})
}

func TestProposalsBeyondTheLimitsAreRefusedBeforeTheyAreProposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, time.Millisecond)
		c.cfg.GroupPendingBytesMax, c.cfg.NodePendingBytesMax, c.cfg.CommandBytesMax = 100<<10, 150<<10, 64<<10
		c.cfg.BarriersMax = 3
		defer c.close()
		c.startAll()
		c.bootstrap(1, 2)
		c.awaitLeader(1, 5*time.Second)
		n, _ := c.awaitLeader(2, 5*time.Second)
		ctx := c.timeout(time.Minute)
		resume := c.holdLoop(n.store)
		big := WriteOp{Value: make([]byte, 30<<10)}
		var waiting []chan outcome
		put := func(p kv.PartitionID, i int) *kv.Error {
			op := big
			op.Key = []byte(value(i))
			out := putAsync(ctx, n.store, p, op)
			synctest.Wait()
			select {
			case o := <-out:
				return kv.AsError(o.err)
			default:
				waiting = append(waiting, out)
				return nil
			}
		}
		for i := range 3 {
			require.Nil(t, put(0, i))
		}
		for _, e := range []*kv.Error{put(0, 3), put(0, 4)} {
			require.Equal(t, kv.CodeOverloaded, e.Code)
			require.Equal(t, kv.OutcomeNotApplied, e.Outcome)
		}
		require.Nil(t, put(1, 5), "another group has room of its own")
		require.Equal(t, kv.CodeOverloaded, put(1, 6).Code, "but the node's is used up")
		_, err := n.store.Put(ctx, 0, WriteOp{Key: []byte("k"), Value: make([]byte, 65<<10)})
		require.Equal(t, kv.CodeValueTooLarge, kv.CodeOf(err))

		var reads []chan error
		for i := range 4 {
			ch := make(chan error, 1)
			go func() { ch <- n.store.ReadBarrier(ctx, 1) }()
			synctest.Wait()
			if i == 3 {
				require.Equal(t, kv.CodeOverloaded, kv.CodeOf(<-ch))
				break
			}
			reads = append(reads, ch)
		}
		resume()
		for _, ch := range waiting {
			require.NoError(t, (<-ch).err)
		}
		for _, ch := range reads {
			require.NoError(t, <-ch)
		}
		require.Nil(t, put(0, 7), "room comes back")
		require.Zero(t, n.store.pendingBytes.Load())
		require.Zero(t, n.store.views.get(1).pendingBytes.Load())
	})
}

func TestStopAnswersEverythingHonestly(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		c.net.isolate(n.id, c.others(n.id), true)
		ctx := c.timeout(time.Minute)
		proposed := putAsync(ctx, n.store, 0, WriteOp{Key: []byte("a"), Value: []byte("x")})
		time.Sleep(100 * time.Millisecond)
		resume := c.holdLoop(n.store)
		queued := putAsync(ctx, n.store, 0, WriteOp{Key: []byte("b"), Value: []byte("x")})
		filled := make(chan error, 1)
		require.NoError(t, n.store.Commit(func(*storage.Batch) {}, func(err error) { filled <- err }))
		read := make(chan error, 1)
		go func() { read <- n.store.ReadBarrier(ctx, 1) }()
		synctest.Wait()
		n.cancel()
		resume()
		require.Equal(t, kv.OutcomeUnknown, kv.AsError((<-proposed).err).Outcome)
		// The loop may have taken these before it saw that it has to end; whatever it says must be what it did.
		require.Contains(t, []kv.Outcome{kv.OutcomeNotApplied, kv.OutcomeUnknown}, kv.AsError((<-queued).err).Outcome)
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(<-read).Outcome)
		if err := <-filled; err != nil {
			require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		}
		require.NoError(t, c.stop(n.id))
		_, err := n.store.Put(ctx, 0, WriteOp{Key: []byte("c")})
		require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
		require.Error(t, n.store.Commit(func(*storage.Batch) {}, func(error) {}))
		require.Equal(t, kv.NoNode, n.store.Leader(1))
	})
}

func TestEventualWritesShareTheBatchAndHearWhenTheyAreDurable(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		n := c.nodes[1]
		set := func(i int) causal.SiblingSet {
			dot := causal.Dot{Node: 1, Time: causal.HLC(i + 1)}
			return causal.SiblingSet{}.Put(causal.Sibling{ID: dot, Dot: dot, Value: []byte(value(i))}, nil)
		}
		done := make(chan error, 100)
		resume := c.holdLoop(n.store)
		for i := range 100 {
			require.NoError(t, n.store.Commit(func(b *storage.Batch) {
				b.SetSiblings(3, []byte(value(i)), set(i))
			}, func(err error) { done <- err }))
		}
		resume()
		for range 100 {
			require.NoError(t, <-done)
		}
		require.Less(t, synced(n.store), uint64(5), "all of them took a sync or two")
		c.powerCut(0, nil, 1)
		c.start(1)
		for i := range 100 {
			got, found, err := c.nodes[1].engine.State().Siblings(3, []byte(value(i)))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, set(i), got)
		}
	})
}

func TestEventualWritesBeyondTheLimitAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, time.Millisecond)
		c.cfg.FillsMax, c.cfg.BatchBytesMax = 10, 100
		defer c.close()
		c.startAll()
		s := c.nodes[1].store
		resume := c.holdLoop(s)
		done := make(chan error, 10)
		commit := func() error {
			return s.Commit(func(b *storage.Batch) {
				b.SetNodeRow("x", make([]byte, 60))
			}, func(err error) { done <- err })
		}
		for range 10 {
			require.NoError(t, commit())
		}
		require.Equal(t, kv.CodeOverloaded, kv.CodeOf(commit()))
		resume()
		for range 10 {
			require.NoError(t, <-done)
		}
		require.GreaterOrEqual(t, synced(s), uint64(5), "a batch takes no more than it should hold")
		synctest.Wait()
		require.NoError(t, commit())
		require.NoError(t, <-done)
		synctest.Wait()
		require.Zero(t, s.fillBytes.Load())
	})
}

// synced is the number of batches that became durable.
func synced(s *Store) uint64 {
	n, _ := s.inbox.syncs()
	return n
}
