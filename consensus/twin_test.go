package consensus

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// The pure parts against dumb twins and against what they promise.

func TestPackKeepsItsPromisesForAnyQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := DefaultConfig()
		cfg.EntryCommandsMax = rapid.IntRange(1, 5).Draw(t, "commands")
		cfg.EntryBytesMax = rapid.IntRange(1, 60).Draw(t, "bytes")
		cfg.EntriesPerIterationMax = rapid.IntRange(1, 4).Draw(t, "entries")
		p := newPacker(cfg)
		var queue []*op
		number := make(map[*op]int)
		for i := range rapid.IntRange(1, 60).Draw(t, "queue") {
			o := &op{command: make([]byte, rapid.IntRange(0, 40).Draw(t, "size"))}
			if k := rapid.IntRange(0, 6).Draw(t, "key"); k > 0 {
				o.key = fmt.Appendf(nil, "k%d", k)
				for j := k + 1; j <= 6 && rapid.IntRange(0, 3).Draw(t, "more") == 0; j++ {
					o.more = append(o.more, fmt.Appendf(nil, "k%d", j))
				}
			}
			number[o] = i
			queue = append(queue, o)
		}
		total := len(queue)
		var log [][]*op
		for rounds := 0; len(queue) > 0; rounds++ {
			require.Less(t, rounds, total+1, "the packer makes progress")
			entries, rest := p.pack(queue)
			require.NotEmpty(t, entries)
			require.LessOrEqual(t, len(entries), cfg.EntriesPerIterationMax)
			log, queue = append(log, entries...), rest
		}
		last, seen, barrier, highest := make(map[string]int), 0, -1, -1
		for _, entry := range log {
			keys, bytes := make(map[string]bool), 0
			require.NotEmpty(t, entry)
			require.LessOrEqual(t, len(entry), cfg.EntryCommandsMax)
			for _, o := range entry {
				seen++
				n := number[o]
				bytes += len(o.command) + commandOverhead
				require.Greater(t, n, barrier, "nothing comes after what it had to precede")
				highest = max(highest, n)
				if o.key == nil {
					require.Len(t, entry, 1)
					require.Equal(t, highest, n, "everything queued before it is before it")
					require.Equal(t, n+1, seen)
					barrier = n
					continue
				}
				for _, key := range append([][]byte{o.key}, o.more...) {
					require.False(t, keys[string(key)], "a key twice in one entry")
					keys[string(key)] = true
					if before, ok := last[string(key)]; ok {
						require.Greater(t, n, before, "order of one key")
					}
					last[string(key)] = n
				}
			}
			require.True(t, bytes <= cfg.EntryBytesMax || len(entry) == 1)
		}
		require.Equal(t, total, seen, "nothing is lost or doubled")
	})
}

// What pendings says is compared with what a full knowledge of the log says.
func TestPendingAgreesWithTheWholeLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pendings
		// mine is where our entries were appended; log is this replica's log from index 1.
		mine := make(map[causal.Position]uint64)
		var log []uint64 // terms
		committedTo, term, seq := 0, uint64(1), uint64(0)
		answers := make(map[uint64]string)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0: // we lead in a new term
				term += uint64(rapid.IntRange(1, 2).Draw(t, "terms"))
				log = append(log, term)
			case 1: // we propose, if the log ends in our term
				seq++
				pos := causal.Position{Term: term, Index: uint64(len(log) + 1)}
				log = append(log, term)
				p.add(&proposed{sequence: seq})
				p.appended(seq, pos)
				mine[pos] = seq
			case 2: // another leader replaces an uncommitted suffix
				term++
				keep := rapid.IntRange(committedTo, len(log)).Draw(t, "keep")
				log = append(log[:keep:keep], term)
				term++
			case 3: // something commits
				if committedTo == len(log) {
					continue
				}
				committedTo++
				pos := causal.Position{Term: log[committedTo-1], Index: uint64(committedTo)}
				got, never := p.committed(pos)
				if s, ok := mine[pos]; ok {
					require.NotNil(t, got, "our entry %d at %v was not recognized", s, pos)
					require.Equal(t, s, got.sequence)
					answers[s] = "applied"
				} else {
					require.Nil(t, got)
				}
				for _, e := range never {
					require.Empty(t, answers[e.sequence], "answered twice")
					answers[e.sequence] = "never"
				}
			}
		}
		for pos, s := range mine {
			if answers[s] == "never" {
				require.False(t, int(pos.Index) <= committedTo && log[pos.Index-1] == pos.Term, "entry %d is committed", s)
			}
			// Whatever lies at or below the commit index is decided.
			if int(pos.Index) <= committedTo {
				require.NotEmpty(t, answers[s], "entry %d at %v waits for ever", s, pos)
			}
		}
	})
}

func TestWindowAgreesWithAPlainLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := window{bytesMax: rapid.IntRange(1, 500).Draw(t, "bytes")}
		var log []*pb.Entry // from index 1
		type handed struct {
			slice, copy []*pb.Entry
		}
		var out []handed
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			from := rapid.IntRange(0, len(log)).Draw(t, "from")
			var batch []*pb.Entry
			for i := range rapid.IntRange(1, 5).Draw(t, "count") {
				batch = append(batch, &pb.Entry{
					Index: new(uint64(from + i + 1)), Term: new(rapid.Uint64().Draw(t, "term")),
					Data: make([]byte, rapid.IntRange(0, 60).Draw(t, "size")),
				})
			}
			log = append(log[:from:from], batch...)
			w.append(batch)
			require.True(t, w.has(uint64(len(log))), "the last entry is always there")
			require.False(t, w.has(uint64(len(log)+1)))
			size := 0
			for i := w.first; w.has(i); i++ {
				require.Same(t, log[i-1], w.entries[i-w.first])
				require.Equal(t, log[i-1].GetTerm(), w.term(i))
				size += entryBytes(log[i-1])
			}
			require.Equal(t, size, w.bytes)
			require.True(t, size <= w.bytesMax || len(w.entries) == 1)
			lo := rapid.Uint64Range(w.first, w.next()-1).Draw(t, "lo")
			got := w.slice(lo, w.next(), rapid.Uint64Range(0, 300).Draw(t, "max"))
			require.NotEmpty(t, got)
			require.Same(t, log[lo-1], got[0])
			out = append(out, handed{got, append([]*pb.Entry(nil), got...)})
			_ = append(got, nil) // callers may; it must not reach the window
		}
		for _, h := range out {
			require.Equal(t, h.copy, h.slice, "a slice handed out changed")
		}
	})
}

// The log on disk, seen through logStore with a window of any size, against a plain slice: appends, overwritten
// suffixes shorter and longer than what they replace, and reopening.
func TestLogStoreAgreesWithAPlainLog(t *testing.T) {
	e, err := storage.OpenInMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	group := uint32(0)
	rapid.Check(t, func(t *rapid.T) {
		group++
		g := kv.GroupID(group)
		b := e.NewBatch()
		b.SetHardState(g, storage.HardState{Term: 1, Commit: 1})
		b.SetTruncated(g, firstPosition)
		b.SetApplied(g, storage.Applied{Index: 1, Term: 1, ConfState: encodeConf(&pb.ConfState{Voters: []uint64{1}})})
		require.NoError(t, e.ApplyNoSync(b))
		b.Close()
		open := func() *logStore {
			s, err := openLog(g, e.Log(), rapid.IntRange(1, 400).Draw(t, "window"), 100)
			require.NoError(t, err)
			return s
		}
		s := open()
		var log []*pb.Entry // log[i] has index i+2
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			from := rapid.IntRange(0, len(log)).Draw(t, "from")
			var batch []*pb.Entry
			for i := range rapid.IntRange(1, 6).Draw(t, "count") {
				batch = append(batch, &pb.Entry{
					Index: new(uint64(from + i + 2)), Term: new(uint64(step + 2)), Type: pb.EntryNormal.Enum(),
					Data: make([]byte, rapid.IntRange(0, 60).Draw(t, "size")),
				})
			}
			log = append(log[:from:from], batch...)
			b := e.NewBatch()
			s.persist(b, batch)
			require.NoError(t, e.ApplyNoSync(b))
			b.Close()
			if rapid.Bool().Draw(t, "reopen") {
				s = open()
			}
			checkLog(t, s, log)
		}
	})
}

func checkLog(t *rapid.T, s *logStore, log []*pb.Entry) {
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	require.Equal(t, uint64(2), first)
	require.Equal(t, uint64(len(log)+1), last)
	for i, e := range log {
		term, err := s.Term(uint64(i + 2))
		require.NoError(t, err)
		require.Equal(t, e.GetTerm(), term)
	}
	lo := rapid.Uint64Range(first, last).Draw(t, "lo")
	hi := rapid.Uint64Range(lo+1, last+1).Draw(t, "hi")
	for at := lo; at < hi; {
		got, err := s.Entries(at, hi, rapid.Uint64Range(0, 400).Draw(t, "max"))
		require.NoError(t, err)
		require.NotEmpty(t, got)
		for _, e := range got {
			want := log[at-2]
			require.Equal(t, want.GetIndex(), e.GetIndex())
			require.Equal(t, want.GetTerm(), e.GetTerm())
			require.Equal(t, want.GetData(), e.GetData())
			at++
		}
	}
	_, err := s.Entries(1, 2, 10)
	require.ErrorIs(t, err, raft.ErrCompacted)
	_, err = s.Entries(last, last+2, 10)
	require.ErrorIs(t, err, raft.ErrUnavailable)
	_, err = s.Term(0)
	require.ErrorIs(t, err, raft.ErrCompacted)
	term, err := s.Term(1)
	require.NoError(t, err)
	require.Equal(t, uint64(1), term)
}
