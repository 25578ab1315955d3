package consensus

import (
	"encoding/binary"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Guard makes a write depend on what its proposer judged it by. The proposer has asked a majority for eventual versions that
// the state does not cover yet (package node, settle.go); the guard has the entry do nothing if the state has changed since.
type Guard struct {
	// Revisions are the indexes of the entries that wrote the state's rows last, one a write, 0 where there is no row. A row
	// with another one makes the whole command do nothing: WriteReply.Overtaken.
	Revisions []uint64
	// Time, unless it is zero, is the reading up to which a majority takes no more eventual writes of the keys. The write's
	// stamp then is that reading on the base of what it replaces: above everything that was found, below everything that
	// is accepted later.
	Time causal.HLC
	// Covers are the ids of eventual writes that each write takes in.
	Covers [][]causal.Dot
}

// Settled is an eventual version that a write takes into the strong lane as it is: with its stamp, so that versions which are
// acknowledged meanwhile stay above it, and covering its own write id only.
type Settled struct {
	ID     causal.Dot
	Stamp  causal.Stamp
	Expiry causal.HLC
}

// Write ids that a state covers are kept for as long as the write may still be stamped anew, which its request's deadline
// bounds; the rest is for copies of such an attempt that turn up late.
const (
	// coveredKept is how many ids a state keeps whatever their age.
	coveredKept = 128
	// coveredAgeMillis is the age, by the time of the entry, from which further ones are forgotten.
	coveredAgeMillis = 60 * 60 * 1000
)

func appendGuard(dst []byte, g *Guard) []byte {
	dst = causal.AppendHLC(dst, g.Time)
	dst = binary.AppendUvarint(dst, uint64(len(g.Revisions)))
	for _, r := range g.Revisions {
		dst = binary.AppendUvarint(dst, r)
	}
	dst = binary.AppendUvarint(dst, uint64(len(g.Covers)))
	for _, ids := range g.Covers {
		dst = binary.AppendUvarint(dst, uint64(len(ids)))
		for _, id := range ids {
			dst = causal.AppendDot(dst, id)
		}
	}
	return dst
}

func readGuard(r *reader) *Guard {
	g := &Guard{}
	if r.err == nil {
		g.Time, r.b, r.err = causal.DecodeHLC(r.b)
	}
	g.Revisions = make([]uint64, r.count("revisions"))
	for i := range g.Revisions {
		g.Revisions[i] = r.uvarint("revision")
	}
	if n := r.count("covers"); n > 0 {
		g.Covers = make([][]causal.Dot, n)
	}
	for i := range g.Covers {
		g.Covers[i] = readDots(r)
	}
	return g
}

func readDots(r *reader) []causal.Dot {
	var ids []causal.Dot
	for range r.count("write ids") {
		if r.err != nil {
			return nil
		}
		var id causal.Dot
		id, r.b, r.err = causal.DecodeDot(r.b)
		ids = append(ids, id)
	}
	return ids
}

// guardBytes is an upper bound of what appendGuard appends.
func guardBytes(g *Guard) int {
	size := 8 + 2*binary.MaxVarintLen32 + len(g.Revisions)*binary.MaxVarintLen64
	for _, ids := range g.Covers {
		size += binary.MaxVarintLen32 + len(ids)*(8+binary.MaxVarintLen64)
	}
	return size
}

// settledBytesMax is an upper bound of what appendSettled appends.
const settledBytesMax = 4*binary.MaxVarintLen64 + 3*8

func appendSettled(dst []byte, s *Settled) []byte {
	return causal.AppendHLC(causal.AppendStamp(causal.AppendDot(dst, s.ID), s.Stamp), s.Expiry)
}

func readSettled(r *reader) *Settled {
	s := &Settled{}
	if r.err == nil {
		s.ID, r.b, r.err = causal.DecodeDot(r.b)
	}
	if r.err == nil {
		s.Stamp, r.b, r.err = causal.DecodeStamp(r.b)
	}
	if r.err == nil {
		s.Expiry, r.b, r.err = causal.DecodeHLC(r.b)
	}
	return s
}

// revision returns the revision that the ith write of the command expects; false when it expects none.
func (g *Guard) revision(i int) (uint64, bool) {
	if g == nil || i >= len(g.Revisions) || mutant.Planted == mutant.SettleWithoutRevision {
		return 0, false
	}
	return g.Revisions[i], true
}

func (g *Guard) covers(i int) []causal.Dot {
	if g == nil || i >= len(g.Covers) {
		return nil
	}
	return g.Covers[i]
}

// stampOf returns the stamp of a write on top of the state s.
func (op *WriteOp) stampOf(g *Guard, s *storage.Strong, e Committed) causal.Stamp {
	if mutant.Planted == mutant.ApplyReadsClock {
		e.Time = causal.MakeHLC(time.Now().UnixMilli(), 0)
	}
	own := causal.Stamp{Base: e.Pos, Time: e.Time, Node: e.Proposer}
	switch {
	case op.Settled != nil && mutant.Planted != mutant.SettleAtOwnPosition:
		return op.Settled.Stamp
	case op.Settled == nil && g != nil && g.Time != 0:
		return causal.Stamp{Base: s.Stamp.Base, Time: g.Time, Node: e.Proposer}
	}
	return own
}

// cover returns the write ids that a state covers which takes the place of one that covers held. The result is a function of
// the entry and of that state alone.
func cover(held, more []causal.Dot, e Committed) []causal.Dot {
	if len(held)+len(more) == 0 {
		return nil
	}
	out := make([]causal.Dot, 0, len(held)+len(more))
	excess := len(held) + len(more) - coveredKept
	for _, id := range held {
		if excess > 0 && id.Time.Millis()+coveredAgeMillis < e.Time.Millis() {
			excess--
			continue
		}
		out = append(out, id)
	}
	return append(out, more...)
}

// fenceOf calls raise for each key that a command writes, with the lowest stamp that an eventual version of it may not be
// stamped at from now on (design.md §8, the append fence). What does not decode is dealt with when it is applied.
func fenceOf(raw []byte, own causal.Stamp, raise func(key []byte, s causal.Stamp)) {
	c, err := decodeCommand(raw)
	if err != nil {
		return
	}
	one := func(op *WriteOp) {
		switch {
		case op.Settled != nil:
			raise(op.Key, op.stampOf(c.Guard, &storage.Strong{}, Committed{Pos: own.Base, Time: own.Time, Proposer: own.Node}))
		case c.Guard != nil && c.Guard.Time != 0:
			// Its promise fences it; its base is known to apply only.
		default:
			raise(op.Key, own)
		}
	}
	if c.Batch == nil && c.expire == nil {
		one(&c.WriteOp)
	}
	for i := range c.Batch {
		one(&c.Batch[i])
	}
}

// revisionOf is what a guard compares: the index of the entry that wrote the row last, 0 without a row.
func revisionOf(s *storage.Strong, found bool) uint64 {
	if !found {
		return 0
	}
	return s.Revision
}
