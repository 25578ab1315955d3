package consensus

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/raft/v3/raftpb"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// entryOf returns a normal entry of the commands.
func entryOf(pos causal.Position, commands ...[]byte) *pb.Entry {
	data := appendEntryHeader(nil, entryHeader{proposer: 1, sequence: pos.Index, time: causal.HLC(pos.Index), commands: len(commands)})
	for _, c := range commands {
		data = appendBytes(data, c)
	}
	return &pb.Entry{Type: pb.EntryNormal.Enum(), Term: new(pos.Term), Index: new(pos.Index), Data: data}
}

// A log is appended to, loses its end to another leader, and is applied; whatever is taken is the entry that is applied.
func TestEntryDecodedAheadIsTheOneThatIsApplied(t *testing.T) {
	g := &group{id: 1}
	rapid.Check(t, func(t *rapid.T) {
		var a ahead
		used, term, applied := 0, uint64(1), uint64(0)
		var log []*pb.Entry // log[i] has the index i+1
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch {
			case rapid.IntRange(0, 9).Draw(t, "replace") == 0 && len(log) > int(applied):
				term++
				log = log[:rapid.IntRange(int(applied), len(log)-1).Draw(t, "keep")]
				if rapid.Bool().Draw(t, "drop") {
					a.drop(&used) // as the loop does; what stays must not matter
				}
			case rapid.Bool().Draw(t, "append"):
				pos := causal.Position{Term: term, Index: uint64(len(log) + 1)}
				e := entryOf(pos, encodeCommand(WriteOp{Key: []byte("k"), Value: fmt.Appendf(nil, "%d/%d", pos.Term, pos.Index)}))
				log = append(log, e)
				if rapid.IntRange(0, 4).Draw(t, "unknown") == 0 {
					continue // as one that does not decode
				}
				d, ok := decodeAhead(g, e)
				require.True(t, ok)
				if rapid.IntRange(0, 4).Draw(t, "full") == 0 {
					d.bytes = aheadBytesMax + 1 // there is no room
				}
				a.put(d, &used)
			case len(log) > int(applied):
				applied++
				e := log[applied-1]
				c, found := a.take(causal.Position{Term: e.GetTerm(), Index: e.GetIndex()}, &used)
				if found {
					again, err := committed(g.id, e)
					require.NoError(t, err)
					again.decoded, err = decodeCommands(&again)
					require.NoError(t, err)
					require.Equal(t, again, c)
				}
			}
			require.LessOrEqual(t, used, aheadBytesMax)
		}
		a.drop(&used)
		require.Zero(t, used)
	})
}

func TestEntryIsDecodedOnceUnlessThereIsNoRoom(t *testing.T) {
	g := &group{id: 1}
	var a ahead
	used := 0
	for index := uint64(2); index < 5; index++ {
		d, ok := decodeAhead(g, entryOf(causal.Position{Term: 1, Index: index}, encodeCommand(put("k", "v", kv.OpID{}))))
		require.True(t, ok)
		if index == 3 {
			d.bytes = aheadBytesMax
		}
		a.put(d, &used)
	}
	for index := uint64(2); index < 5; index++ {
		_, found := a.take(causal.Position{Term: 1, Index: index}, &used)
		require.Equal(t, index != 3, found)
	}
	require.Zero(t, used)
	require.Empty(t, a.entries)
}

// A replica that does not know one command of an entry fences the keys of the others all the same.
func TestEntryThatDoesNotDecodeFencesWhatDoes(t *testing.T) {
	bubble(t, 1, func(c *cluster) {
		c.bootstrap(1)
		n, _ := c.awaitLeader(1, 5*time.Second)
		onLoop(n.store, func(l *loop) {
			g := l.groups[1]
			pos := causal.Position{Term: g.term, Index: g.log.last.Index + 1}
			e := entryOf(pos, encodeCommand(put("known", "v", kv.OpID{})), []byte{200, 1, 2})
			require.NoError(c.t, l.fenceAppended(g, []*pb.Entry{e}))
			require.Equal(c.t, pos, g.view.fences.of([]byte("known")).Base)
			require.Empty(c.t, g.ahead.entries, "it is for apply to meet it")
		})
	})
}

// What waits to be applied is bounded for the node, so that it has to be given back whatever becomes of an entry.
func TestNothingStaysDecodedOnceAllIsApplied(t *testing.T) {
	bubble(t, 3, func(c *cluster) {
		c.bootstrap(1)
		leader, _ := c.awaitLeader(1, 5*time.Second)
		time.Sleep(time.Second)
		away := leader.id
		for i := range 20 {
			_, err := c.put(c.timeout(5*time.Second), 0, fmt.Sprint("k", i%5), "v")
			require.NoError(t, err)
		}
		c.net.isolate(away, c.others(away), true)
		for range 5 {
			_, _ = leader.store.Put(c.timeout(100*time.Millisecond), 0, WriteOp{Key: []byte("lost"), Value: []byte("v")})
		}
		onLoop(leader.store, func(l *loop) { require.Positive(c.t, l.aheadBytes) })
		time.Sleep(5 * time.Second)
		for i := range 20 {
			_, err := c.put(c.timeout(5*time.Second), 0, fmt.Sprint("k", i%5), "w")
			require.NoError(t, err)
		}
		c.net.isolate(away, c.others(away), false)
		time.Sleep(5 * time.Second)
		_, err := c.put(c.timeout(5*time.Second), 0, "last", "v")
		require.NoError(t, err)
		time.Sleep(time.Second)
		for _, n := range c.nodes {
			onLoop(n.store, func(l *loop) {
				require.Zero(c.t, l.aheadBytes)
				require.Empty(c.t, l.groups[1].ahead.entries)
			})
		}
	})
}

// A barrier that was answered may be another caller's.
func TestBarrierIsAnsweredOnce(t *testing.T) {
	b := &barrier{view: &view{}, done: make(chan error, 2)}
	b.answer(nil)
	require.Panics(t, func() { b.answer(nil) })
}
