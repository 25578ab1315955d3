package consensus

import pb "go.etcd.io/raft/v3/raftpb"

// entryOverhead is what an entry costs beside its data, in Raft's size limits and in the window's. It is an upper bound
// of what protobuf, in whose bytes Raft counts, would add.
const entryOverhead = 32

func entryBytes(e *pb.Entry) int { return len(e.GetData()) + entryOverhead }

// window holds the newest entries of one group's log in memory, so that followers and apply are served without
// reading from storage. It is bounded in bytes but always holds at least the last entry appended.
type window struct {
	bytesMax int
	// entries are consecutive. Slices of it are handed out, so elements that were once inside are never overwritten.
	entries []*pb.Entry
	first   uint64 // index of entries[0]; meaningless while entries is empty
	bytes   int
}

func (w *window) next() uint64 { return w.first + uint64(len(w.entries)) }

// append takes entries that follow the window, overlap it, or replace a suffix of it. Entries that do not touch it
// replace it whole.
func (w *window) append(entries []*pb.Entry) {
	first := entries[0].GetIndex()
	switch {
	case len(w.entries) == 0 || first < w.first || first > w.next():
		w.entries, w.first, w.bytes = nil, first, 0
	case first < w.next():
		keep := int(first - w.first)
		for _, e := range w.entries[keep:] {
			w.bytes -= entryBytes(e)
		}
		// The capped slice makes the append below copy, so that slices handed out keep the replaced entries.
		w.entries = w.entries[:keep:keep]
	}
	w.entries = append(w.entries, entries...)
	for _, e := range entries {
		w.bytes += entryBytes(e)
	}
	w.trim()
}

// trim drops the oldest entries beyond the bound. They stay reachable through the array until append, which is what
// keeps the window moving, has outgrown it; so the window pins at most about twice its bound.
func (w *window) trim() {
	drop := 0
	for w.bytes > w.bytesMax && drop < len(w.entries)-1 {
		w.bytes -= entryBytes(w.entries[drop])
		drop++
	}
	w.first += uint64(drop)
	w.entries = w.entries[drop:]
}

func (w *window) has(index uint64) bool {
	return len(w.entries) > 0 && index >= w.first && index < w.next()
}

func (w *window) term(index uint64) uint64 { return w.entries[index-w.first].GetTerm() }

// slice returns the entries [lo, hi), all of which must be held, up to maxBytes but at least one. The caller may append
// to the result.
func (w *window) slice(lo, hi, maxBytes uint64) []*pb.Entry {
	out := w.entries[lo-w.first : hi-w.first]
	size := uint64(0)
	for i, e := range out {
		size += uint64(entryBytes(e))
		if size > maxBytes && i > 0 {
			out = out[:i]
			break
		}
	}
	return out[:len(out):len(out)]
}
