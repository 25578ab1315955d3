package consensus

import (
	"encoding/binary"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Guard makes a command depend on what its proposer judged it by. The proposer has asked a majority for eventual versions that
// the state does not cover yet (package node, settle.go); the guard has the entry do nothing if the state has changed since.
type Guard struct {
	// Writes is one expectation a write of the command.
	Writes []Expectation
}

// Expectation is what one write of a guarded command was judged by.
type Expectation struct {
	// Any says that the write was judged by nothing; the rest is then unused.
	Any bool
	// Revision is the index of the entry that wrote the key's row last, 0 where there is none. Another one makes the whole command
	// do nothing: WriteReply.Overtaken.
	Revision uint64
	// Time, unless it is zero, is the reading up to which a majority takes no more eventual writes of the key. The write's
	// stamp then is that reading on the base of what it replaces: above everything that was found, below everything that
	// is accepted later.
	Time causal.HLC
	// Covers are the ids of eventual writes that the write takes in.
	Covers []causal.Dot
	// Before is a reading up to which the write leaves no eventual write uncovered: everything with an id from up to then was on
	// every replica when the proposer asked (the repair watermark), so that it was found, and is taken in or stamped below.
	// Zero: that is not known.
	Before causal.HLC
	// Base is storage.Strong.Base of the new state.
	Base []byte
	// Beside says that versions beside the state were found, under a resolver that keeps them, Live that a value is among them, and
	// Replaced that one of them took the state's place. Conditions, and whether the key was found, go by that too.
	Beside, Live, Replaced bool
}

// Settled is an eventual version that a write takes into the strong lane as it is: with its stamp, so that versions which are
// acknowledged meanwhile stay above it, and covering its own write id only.
type Settled struct {
	ID     causal.Dot
	Stamp  causal.Stamp
	Expiry causal.HLC
}

// CoveredMax bounds the ids of eventual writes that a state covers one by one. Ids are forgotten below the repair watermark
// (Expectation.Before); while a replica is away it stands still. Proposers refuse what would exceed the bound.
const CoveredMax = 32 << 10

// Flags of an expectation.
const (
	expectsAny byte = 1 << iota
	expectsTime
	expectsCovers
	expectsBefore
	expectsBase
	expectsBeside
	expectsLive
	expectsReplaced
)

// flags returns what the expectation has, in the order of the constants.
func (x *Expectation) flags() (flags byte) {
	for i, has := range [...]bool{
		x.Any, x.Time != 0, len(x.Covers) > 0, x.Before != 0, len(x.Base) > 0, x.Beside, x.Live, x.Replaced,
	} {
		if has {
			flags |= 1 << i
		}
	}
	return flags
}

func appendGuard(dst []byte, g *Guard) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(g.Writes)))
	for i := range g.Writes {
		x := &g.Writes[i]
		if x.Any {
			dst = append(dst, expectsAny)
			continue
		}
		dst = binary.AppendUvarint(append(dst, x.flags()), x.Revision)
		if x.Time != 0 {
			dst = causal.AppendHLC(dst, x.Time)
		}
		if len(x.Covers) > 0 {
			dst = binary.AppendUvarint(dst, uint64(len(x.Covers)))
			for _, id := range x.Covers {
				dst = causal.AppendDot(dst, id)
			}
		}
		if x.Before != 0 {
			dst = causal.AppendHLC(dst, x.Before)
		}
		if len(x.Base) > 0 {
			dst = appendBytes(dst, x.Base)
		}
	}
	return dst
}

func readGuard(r *reader) *Guard {
	g := &Guard{Writes: make([]Expectation, r.count("expectations"))}
	for i := range g.Writes {
		x := &g.Writes[i]
		flags := r.byte("expectation")
		if flags&expectsAny != 0 && flags != expectsAny {
			r.fail("expectation")
		}
		if x.Any = flags&expectsAny != 0; x.Any {
			continue
		}
		x.Revision = r.uvarint("revision")
		if flags&expectsTime != 0 && r.err == nil {
			x.Time, r.b, r.err = causal.DecodeHLC(r.b)
		}
		if flags&expectsCovers != 0 {
			x.Covers = readDots(r)
		}
		if flags&expectsBefore != 0 && r.err == nil {
			x.Before, r.b, r.err = causal.DecodeHLC(r.b)
		}
		if flags&expectsBase != 0 {
			x.Base = r.bytes("base")
		}
		x.Beside, x.Live, x.Replaced = flags&expectsBeside != 0, flags&expectsLive != 0, flags&expectsReplaced != 0
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
	size := binary.MaxVarintLen32
	for i := range g.Writes {
		x := &g.Writes[i]
		size += 1 + binary.MaxVarintLen64 + 2*8 + 2*binary.MaxVarintLen32 + len(x.Covers)*(8+binary.MaxVarintLen64) + len(x.Base)
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

// of returns what the ith write of the command was judged by.
func (g *Guard) of(i int) Expectation {
	if g == nil || i >= len(g.Writes) {
		return Expectation{Any: true}
	}
	return g.Writes[i]
}

// stampOf returns the stamp of a write on top of the state s.
func (op *WriteOp) stampOf(x *Expectation, s *storage.Strong, e Committed) causal.Stamp {
	if mutant.Planted == mutant.ApplyReadsClock {
		e.Time = causal.MakeHLC(time.Now().UnixMilli(), 0)
	}
	own := causal.Stamp{Base: e.Pos, Time: e.Time, Node: e.Proposer}
	switch {
	case op.Settled != nil && mutant.Planted != mutant.SettleAtOwnPosition:
		return op.Settled.Stamp
	case op.Settled == nil && x.Time != 0:
		return causal.Stamp{Base: s.Stamp.Base, Time: x.Time, Node: e.Proposer}
	}
	return own
}

// cover returns the write ids that a state covers one by one which takes the place of one that covers held, where all up to
// before are covered anyway.
func cover(held, more []causal.Dot, before causal.HLC) []causal.Dot {
	if len(held)+len(more) == 0 {
		return nil
	}
	out := make([]causal.Dot, 0, len(held)+len(more)+1)
	for _, ids := range [...][]causal.Dot{held, more} {
		for _, id := range ids {
			if id.Time > before {
				out = append(out, id)
			}
		}
	}
	return out
}

// fence raises the fences of the keys that the command writes: each to the stamp above which an eventual version of it has to be from
// now on (design.md §8, the append fence). f.mu must be held.
func (c *command) fence(f *fences, e *Committed) {
	if c.Batch == nil && c.expire == nil {
		f.fence(&c.WriteOp, c.Guard.of(0), e)
	}
	for i := range c.Batch {
		f.fence(&c.Batch[i], c.Guard.of(i), e)
	}
}

// fence raises the fence of the key that a write which was judged by x is about. mu must be held.
func (f *fences) fence(op *WriteOp, x Expectation, e *Committed) {
	switch {
	case op.Settled != nil:
		f.raise(op.Key, op.stampOf(&x, &storage.Strong{}, *e))
	case x.Time != 0:
		// Its promise fences it; its base is known to apply only.
	default:
		f.raise(op.Key, causal.Stamp{Base: e.Pos, Time: e.Time, Node: e.Proposer})
	}
}

// revisionOf is what a guard compares: the index of the entry that wrote the row last, 0 without a row.
func revisionOf(s *storage.Strong, found bool) uint64 {
	if !found {
		return 0
	}
	return s.Revision
}

// Answers reports whether what the write answers, or writes, depends on the value that it replaces.
func (op *WriteOp) Answers() bool {
	return op.Delete || op.Condition.Kind != kv.ConditionNone || op.TTL == kv.TTLKeep
}
