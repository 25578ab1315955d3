package quorum

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

func stateOf(index uint64, when causal.HLC, value string, covered ...causal.Dot) storage.Strong {
	stamp := causal.Stamp{Base: causal.Position{Term: 1, Index: index}, Time: when, Node: 1}
	return storage.Strong{Value: []byte(value), Deleted: value == "", Revision: index, Stamp: stamp, Covered: covered}
}

// keep places a write on v under the resolver and returns its dot.
func keep(t require.TestingT, v *versions, d draft, node kv.NodeID, when causal.HLC, r Resolver) causal.Dot {
	dot := causal.Dot{Node: node, Time: when}
	base := causal.Position{Term: 1, Index: max(1, v.strong.Stamp.Base.Index)}
	set, how, err := v.place(&d, dot, base, r, 64)
	require.NoError(t, err)
	require.Equal(t, placementMade, how)
	v.set = set
	return dot
}

func blind(value string) draft { return draft{blind: true, value: []byte(value), deleted: value == ""} }

// shown returns the values that a reader under the resolver is answered with.
func shown(t require.TestingT, v *versions, r Resolver) []string {
	var res kv.Response
	require.NoError(t, v.resolve(&res, r, kv.SiblingsAll))
	require.Equal(t, res.Found, v.live(r) || len(res.Siblings) > 0)
	var out []string
	for _, s := range res.Siblings {
		if !s.Deleted {
			out = append(out, string(s.Value))
		}
	}
	if len(res.Siblings) == 0 && res.Found {
		out = []string{string(res.Value)}
	}
	return out
}

// A strong write replaces what it has found, by id. What it has not found stands beside it, whatever its stamp: it was acknowledged.
func TestConcurrentVersionsBelowAStrongWriteStayBesideIt(t *testing.T) {
	v := &versions{}
	found := keep(t, v, blind("found"), 2, 10, Siblings{})
	keep(t, v, blind("missed"), 3, 11, Siblings{})
	v.hasStrong, v.strong = true, stateOf(7, 100, "strong", found)
	require.ElementsMatch(t, []string{"missed", "strong"}, shown(t, v, Siblings{}))

	read := causal.Seen{Vector: v.context(true)}
	after := *v
	keep(t, &after, draft{context: read, value: []byte("merged")}, 2, 120, Siblings{})
	require.Equal(t, []string{"merged"}, shown(t, &after, Siblings{}), "one context covers them all, the strong lane's state too")

	keep(t, v, blind("beside"), 2, 120, Siblings{})
	require.ElementsMatch(t, []string{"missed", "strong", "beside"}, shown(t, v, Siblings{}), "a blind write replaces nothing")
	v.strong = stateOf(9, 130, "second", v.strong.Covered[0], v.set.Siblings[0].ID, v.set.Siblings[1].ID)
	require.Equal(t, []string{"second"}, shown(t, v, Siblings{}))
	require.True(t, v.live(Siblings{}))
}

func TestStateThatAnEventualWriteReplacedStaysReplacedUntilTheNextStrongWrite(t *testing.T) {
	v := &versions{hasStrong: true, strong: stateOf(7, 100, "strong")}
	first := keep(t, v, draft{context: causal.Seen{Vector: v.context(true)}, value: []byte("x")}, 2, 110, Siblings{})
	require.Equal(t, []string{"x"}, shown(t, v, Siblings{}))
	deletion := *v
	keep(t, &deletion, draft{context: causal.Seen{Vector: v.context(true)}, deleted: true}, 2, 120, Siblings{})
	require.Empty(t, shown(t, &deletion, Siblings{}))
	require.False(t, deletion.live(Siblings{}))
	require.False(t, deletion.collectable(7, true), "the tombstone is what hides the state")

	// A writer that saw the first state has not seen the second.
	v.strong = stateOf(9, 130, "second")
	keep(t, v, draft{context: causal.Seen{Vector: causal.Vector{causal.LogDot(7)}.With(first)}, value: []byte("y")}, 3, 140, Siblings{})
	require.ElementsMatch(t, []string{"second", "y"}, shown(t, v, Siblings{}))
	// Nor does a replica that has not applied it lack anything.
	behind := versions{hasStrong: true, strong: stateOf(7, 100, "strong"), set: v.set}
	require.False(t, behind.lags(behind.set))
	behind.strong = stateOf(5, 90, "older")
	require.True(t, behind.lags(behind.set), "what the set was placed on top of is not here")
}

// An index comes from outside: of another cluster's log it would cover states that nobody has written yet.
func TestContextCoversNoStateThatItsCoordinatorHasNotApplied(t *testing.T) {
	v := &versions{hasStrong: true, strong: stateOf(7, 100, "strong")}
	keep(t, v, draft{context: causal.Seen{Vector: causal.Vector{causal.LogDot(1000)}}, value: []byte("x")}, 2, 110, Siblings{})
	require.Equal(t, []string{"x"}, shown(t, v, Siblings{}))
	v.strong = stateOf(8, 120, "next")
	require.ElementsMatch(t, []string{"next", "x"}, shown(t, v, Siblings{}))
	require.EqualValues(t, 7, v.set.Context.Log())
}

func TestResolversTakeTheStateInOnce(t *testing.T) {
	for _, c := range []struct {
		r                   Resolver
		strong, write, want string
	}{
		{Extreme{}, "10", "3", "10"},
		{Extreme{Least: true}, "10", "3", "3"},
		{Union{}, `["a"]`, `["b"]`, `["a","b"]`},
		{Counter{}, "10", "3", "13"},
	} {
		one := &versions{hasStrong: true, strong: stateOf(7, 100, c.strong)}
		two := &versions{hasStrong: true, strong: stateOf(7, 100, c.strong)}
		keep(t, one, blind(c.write), 1, 110, c.r)
		require.Equal(t, []string{c.want}, shown(t, one, c.r))
		keep(t, two, draft{blind: true, value: []byte(c.write), id: causal.Dot{}}, 2, 111, c.r)
		one.set = one.merged(two.set, true)
		if _, counts := c.r.(Counter); counts {
			c.want = "16"
		}
		require.Equal(t, []string{c.want}, shown(t, one, c.r), "%s", c.r.Name())

		// A write that lies below the state, and that it has not found, stays.
		late := &versions{}
		keep(t, late, blind(c.write), 3, 50, c.r)
		late.hasStrong, late.strong = true, stateOf(7, 100, c.strong)
		if _, counts := c.r.(Counter); counts {
			c.want = "13"
		}
		require.Equal(t, []string{c.want}, shown(t, late, c.r), "%s", c.r.Name())
	}
}

// What becomes of tallies that a strong write replaced, when somebody who has not heard of it counts on: twin of a counter that
// three nodes and a log change, any of them behind.
func TestCounterIsTheLastStrongValueAndWhatThatHasNotReplaced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := make([]*versions, 3)
		for i := range nodes {
			nodes[i] = &versions{}
		}
		var log []storage.Strong
		applied := make([]int, len(nodes))
		apply := func(i, upTo int) {
			if upTo > applied[i] {
				applied[i] = upTo
				nodes[i].hasStrong, nodes[i].strong = true, log[upTo-1]
			}
		}
		contains := map[causal.Dot]map[int]bool{} // the increments in each version, by its dot
		replaced := map[int]bool{}
		now, count := causal.HLC(10), 0
		add := func(i int) {
			now++
			v := nodes[i]
			inside := map[int]bool{count: true}
			for _, s := range v.visible(true) {
				maps.Copy(inside, contains[s.Dot])
			}
			contains[keep(t, v, blind(strconv.Itoa(1<<count)), kv.NodeID(i+1), now, Counter{})] = inside
			count++
		}
		write := func() {
			now++
			var f Findings
			skipped := rapid.IntRange(0, 2).Draw(t, "skipped")
			leader := (skipped + 1) % 3
			apply(leader, len(log))
			for i, v := range nodes {
				if i != skipped {
					f.Add(&ReadReply{Set: v.surviving(v.set, true)})
				}
			}
			state := ReadReply{HasStrong: nodes[leader].hasStrong, Strong: nodes[leader].strong}
			for _, s := range f.versions {
				maps.Copy(replaced, contains[s.Dot])
			}
			next := stateOf(uint64(len(log)+1), now, "0")
			next.Deleted = rapid.IntRange(0, 3).Draw(t, "deletes") == 0
			if next.Deleted {
				next.Value = nil
			}
			next.Covered = append(slices.Clone(state.Strong.Covered), f.IDs(state)...)
			next.Base = f.Base(state, Counter{})
			log = append(log, next)
			apply(leader, len(log))
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch i := rapid.IntRange(0, 2).Draw(t, "node"); rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				write()
			case 1:
				apply(i, rapid.IntRange(0, len(log)).Draw(t, "applied"))
			case 2:
				from := nodes[rapid.IntRange(0, 2).Draw(t, "from")]
				nodes[i].set = nodes[i].merged(from.set, true)
			default:
				add(i)
			}
		}
		reader := nodes[0]
		apply(0, len(log))
		for _, v := range nodes {
			reader.set = reader.merged(v.set, true)
		}
		want := 0
		for i := range count {
			if !replaced[i] {
				want += 1 << i
			}
		}
		got := shown(t, reader, Counter{})
		if len(got) == 0 {
			got = []string{"0"}
		}
		require.Equal(t, strconv.Itoa(want), got[0])
	})
}

// A write id is forgotten by itself once all of its attempts are everywhere.
func TestIDsUpToTheWatermarkAreCovered(t *testing.T) {
	id := causal.Dot{Node: 2, Time: 50}
	again := causal.Sibling{ID: id, Dot: causal.Dot{Node: 2, Time: 300}, Stamp: causal.Stamp{Base: causal.Position{Term: 9, Index: 9}, Time: 300, Node: 2}}
	for _, keeps := range []bool{false, true} {
		v := versions{hasStrong: true, strong: stateOf(7, 100, "s")}
		require.False(t, v.covers(&again, keeps))
		v.strong.Before = 49
		require.False(t, v.covers(&again, keeps))
		v.strong.Before = 50
		require.True(t, v.covers(&again, keeps))
	}
	_, how, err := (&versions{}).place(&draft{id: causal.Dot{Node: 1, Time: causal.MakeHLC(1000, 0)}, value: []byte("v")},
		causal.Dot{Node: 1, Time: causal.MakeHLC(1001+AttemptSpan.Milliseconds(), 0)}, causal.Position{Term: 1, Index: 1}, LWW{}, 64)
	require.NoError(t, err)
	require.Equal(t, placementOver, how, "a write that is stamped anew for longer would outlive its id")
}

// A write replaces an acknowledged version, and its coordinator loses it with its power before it was durable there. The next write of
// that node covers it unseen: had others taken it meanwhile, what it replaced would be gone with it.
func TestPowerCutOfACoordinatorTakesNoAcknowledgedSiblingAlong(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		first, err := c.put(1, "k", "first", nil, 3)
		require.NoError(t, err)
		c.nodes[1].disk.set(func(d *testDisk) { d.sync = 300 * time.Millisecond })
		writer := make(chan struct{})
		go func() {
			defer close(writer)
			_, err := c.put(1, "k", "second", first.Context, 2)
			if err == nil {
				t.Error("acknowledged without the coordinator's own copy")
			}
		}()
		time.Sleep(100 * time.Millisecond)
		c.powerCut(1)
		c.slowLinks(time.Millisecond)
		_, err = c.put(1, "k", "third", nil, 3)
		require.NoError(t, err)
		<-writer
		for at := range c.nodes {
			res, err := c.get(at, "k", 3)
			require.NoError(t, err)
			require.Len(t, res.Siblings, 2)
			values := []string{string(res.Siblings[0].Value), string(res.Siblings[1].Value)}
			require.ElementsMatch(t, []string{"first", "third"}, values)
		}
	})
}

// A reader hands on what it found, which must not be what its replica may still lose.
func TestVersionsThatAreKeptAreReadOnceTheyAreDurable(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		first, err := c.put(1, "k", "first", nil, 3)
		require.NoError(t, err)
		c.nodes[1].disk.set(func(d *testDisk) { d.sync, d.early = 300*time.Millisecond, true })
		began := time.Now()
		writer := make(chan error, 1)
		go func() {
			_, err := c.put(1, "k", "second", first.Context, 2)
			writer <- err
		}()
		time.Sleep(100 * time.Millisecond)
		require.False(t, c.nodes[1].store.AtHand(3, []byte("k")))
		res, err := c.get(2, "k", 2)
		require.NoError(t, err)
		require.Equal(t, "first", string(res.Value))
		require.Less(t, time.Since(began), 300*time.Millisecond)
		for string(res.Value) == "first" {
			res, err = c.get(2, "k", 3)
			require.NoError(t, err)
		}
		require.Equal(t, "second", string(res.Value))
		require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
		require.NoError(t, <-writer)
	})
}

func TestReadOfAVersionThatIsKeptDoesNotWaitForADiskThatHangs(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		c.keeps = true
		c.slowLinks(time.Millisecond)
		c.nodes[1].disk.set(func(d *testDisk) { d.sync, d.early = time.Minute, true })
		go func() { _, _ = c.put(1, "k", "v", nil, 2) }()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		_, err := c.nodes[1].store.Read(ReadRequest{Partition: 3, Epoch: 1, Key: []byte("k")})
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err))
		require.Equal(t, keptPatience, time.Since(began))
	})
}
