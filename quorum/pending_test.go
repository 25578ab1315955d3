package quorum

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// handCommitter keeps commits for the test to fill and end by hand.
type handCommitter struct {
	queue []queuedCommit
	full  bool
}

var errFull = kv.Errorf(kv.CodeOverloaded, "full")

func (h *handCommitter) Commit(fill func(*storage.Batch), done func(error)) error {
	if h.full {
		return errFull
	}
	h.queue = append(h.queue, queuedCommit{fill: fill, done: done})
	return nil
}

func (h *handCommitter) CommitAsync(fill func(*storage.Batch), visible func(), done func(error)) error {
	if h.full {
		return errFull
	}
	h.queue = append(h.queue, queuedCommit{fill, done, visible})
	return nil
}

// pendingTest writes one key by hand.
type pendingTest struct {
	t      *testing.T
	hand   *handCommitter
	keys   *pendingKeys
	engine *storage.Engine
	ended  map[string]error
}

func newPendingTest(t *testing.T) *pendingTest {
	e, err := storage.Open("db", testStorageConfig(), storage.Deps{FS: storage.NewMemFS()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	h := &handCommitter{}
	return &pendingTest{t: t, hand: h, keys: newPendingKeys(h), engine: e, ended: map[string]error{}}
}

// write adds one sibling to the key and returns the error of offering it.
func (p *pendingTest) write(node kv.NodeID, name string) error {
	e, known := p.keys.enter(3, []byte("k"))
	var read causal.SiblingSet
	if !known {
		read, _, _ = p.engine.State().Siblings(3, []byte("k"))
	}
	e.stripe.mu.Lock()
	set := e.load(read)
	w := arriving("k", node, int64(node), name)
	c := e.put(causal.Merge(set, w.Set), durable, func(err error) { p.ended[name] = err })
	e.leave()
	e.stripe.mu.Unlock()
	return p.keys.offer(c)
}

func (p *pendingTest) fill(n int) {
	b := p.engine.NewBatch()
	defer b.Close()
	p.hand.queue[n].fill(b)
	require.NoError(p.t, p.engine.ApplyNoSync(b))
}

func (p *pendingTest) held() []string {
	set, _, err := p.engine.State().Siblings(3, []byte("k"))
	require.NoError(p.t, err)
	return values(set)
}

func TestFailedCommitFallsBackToWhatStorageWasHanded(t *testing.T) {
	p := newPendingTest(t)
	require.NoError(t, p.write(1, "first"))
	p.fill(0) // in flight
	require.NoError(t, p.write(2, "second"))
	require.NoError(t, p.write(3, "rides along"))
	require.Len(t, p.hand.queue, 2)
	p.hand.queue[1].done(errors.New("stopped"))
	require.Error(t, p.ended["second"])
	require.Error(t, p.ended["rides along"])
	require.NotContains(t, p.ended, "first")

	// What failed is not the base of the next write, which would make it durable after all.
	require.NoError(t, p.write(4, "fourth"))
	p.fill(2)
	p.hand.queue[0].done(nil)
	p.hand.queue[2].done(nil)
	require.NoError(t, p.ended["first"])
	require.NoError(t, p.ended["fourth"])
	require.Equal(t, []string{"first", "fourth"}, p.held())
}

func TestFullCommitterFailsAllWhoWaitedForTheOffer(t *testing.T) {
	p := newPendingTest(t)
	p.hand.full = true
	e, _ := p.keys.enter(3, []byte("k"))
	e.stripe.mu.Lock()
	set := e.load(causal.SiblingSet{})
	c := e.put(causal.Merge(set, arriving("k", 1, 1, "offered").Set), durable, func(err error) { p.ended["offered"] = err })
	e.leave()
	e.stripe.mu.Unlock()
	require.NoError(t, p.write(2, "attached"), "it rides along with a commit that has not been offered yet")
	require.Equal(t, kv.CodeOverloaded, kv.CodeOf(p.keys.offer(c)))
	require.Equal(t, kv.CodeOverloaded, kv.CodeOf(p.ended["offered"]))
	require.Equal(t, kv.CodeOverloaded, kv.CodeOf(p.ended["attached"]))
	require.Equal(t, kv.OutcomeNotApplied, kv.AsError(p.ended["attached"]).Outcome)

	p.hand.full = false
	require.NoError(t, p.write(3, "next"))
	p.fill(0)
	p.hand.queue[0].done(nil)
	require.Equal(t, []string{"next"}, p.held())
}

func TestCommitsFilledOutOfOrderLoseNothing(t *testing.T) {
	p := newPendingTest(t)
	require.NoError(t, p.write(1, "first"))
	p.fill(0)
	require.NoError(t, p.write(2, "second"))
	p.fill(1)
	require.NoError(t, p.write(3, "third"))
	p.hand.queue[1].done(nil)
	p.fill(2)
	p.hand.queue[0].done(nil)
	p.hand.queue[2].done(nil)
	require.Equal(t, []string{"first", "second", "third"}, p.held())
	require.Len(t, p.ended, 3)
}
