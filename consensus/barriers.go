package consensus

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// barrier is one caller of ReadBarrier. One whose caller went away stays until it is resolved, which a leader does
// within a round trip, and a node that lost its majority when it notices.
type barrier struct {
	view *view
	done chan error // one slot
	// promise asks for Peeked.Promised.
	promise bool
	// index, unless it is 0, is all that the caller waits for: that so much is applied here.
	index uint64
	// peeked is what the round learnt, written before done.
	peeked Peeked
	// answered says that the caller was told, after which the barrier may be another caller's.
	answered bool
}

// answer tells the barrier's caller. The loop must not touch the barrier any more.
func (b *barrier) answer(err error) {
	invariant.Check(!b.answered, "a barrier was answered twice")
	b.answered = true
	b.view.barriers.Add(-1)
	b.done <- err
}

// round is one ReadIndex request and the barriers that share it.
type round struct {
	id       uint64
	barriers []*barrier
	tick     uint64 // when it was issued
	index    uint64 // what must be applied, once confirmed
	// promise is the reading that the round asks replicas to promise, clean what they answered.
	promise causal.HLC
	clean   bool
}

// barriers collects the read barriers of one group into rounds. A barrier may only join a round that is issued after it
// arrived: the round's index is then at least what was committed when the caller asked.
type barriers struct {
	waiting []*barrier
	// issued rounds wait for a majority to confirm the leadership; confirmed ones for apply to reach their index.
	issued, confirmed []*round
}

func (b *barriers) add(w *barrier) {
	if w.index > 0 {
		b.confirmed = append(b.confirmed, &round{barriers: []*barrier{w}, index: w.index})
		return
	}
	b.waiting = append(b.waiting, w)
}

// promises reports whether any that waits asks for a promise.
func (b *barriers) promises() bool {
	return slices.ContainsFunc(b.waiting, func(w *barrier) bool { return w.promise })
}

// clean says that the round's peek found nothing.
func (b *barriers) clean(id uint64) {
	for _, r := range b.issued {
		if r.id == id {
			r.clean = true
		}
	}
}

// issue makes a round of all that wait, unless nothing waits or roundsMax rounds are unanswered. id must never have
// been used before by anyone.
func (b *barriers) issue(id, tick uint64, promise causal.HLC, roundsMax int) bool {
	if len(b.waiting) == 0 || len(b.issued) >= roundsMax {
		return false
	}
	b.issued = append(b.issued, &round{id: id, barriers: b.waiting, tick: tick, promise: promise})
	b.waiting = nil
	return true
}

// confirm says that Raft answered the round with an index. An unknown round was given up before; its answer is late.
func (b *barriers) confirm(id, index uint64) {
	for i, r := range b.issued {
		if r.id == id {
			r.index = index
			b.issued = append(b.issued[:i], b.issued[i+1:]...)
			b.confirmed = append(b.confirmed, r)
			return
		}
	}
}

// release returns the barriers whose index has been applied.
func (b *barriers) release(applied uint64) []*barrier {
	var out []*barrier
	kept := b.confirmed[:0]
	for _, r := range b.confirmed {
		if r.index <= applied || mutant.Planted == mutant.ReadBeforeApply {
			for _, w := range r.barriers {
				w.peeked = Peeked{Clean: r.clean}
				if r.clean && w.promise {
					w.peeked.Promised = r.promise
				}
			}
			out = append(out, r.barriers...)
		} else {
			kept = append(kept, r)
		}
	}
	clear(b.confirmed[len(kept):])
	b.confirmed = kept
	return out
}

// expire gives up rounds issued before the tick. Their barriers wait again and will share a round with a new id: Raft
// drops requests without a word, and an answer to the old one must not be taken for an answer to the new one.
func (b *barriers) expire(before uint64) {
	kept := b.issued[:0]
	for _, r := range b.issued {
		if r.tick < before {
			b.waiting = append(b.waiting, r.barriers...)
		} else {
			kept = append(kept, r)
		}
	}
	clear(b.issued[len(kept):])
	b.issued = kept
}

// reissue gives up all rounds that are not confirmed, as expire does.
func (b *barriers) reissue() {
	for _, r := range b.issued {
		b.waiting = append(b.waiting, r.barriers...)
	}
	clear(b.issued)
	b.issued = b.issued[:0]
}

// unanswered removes and returns the barriers of which no majority has been heard yet.
func (b *barriers) unanswered() []*barrier {
	out := b.waiting
	for _, r := range b.issued {
		out = append(out, r.barriers...)
	}
	b.waiting = nil
	clear(b.issued)
	b.issued = b.issued[:0]
	return out
}

// drain removes and returns everything that this node can no longer answer as a leader. Confirmed rounds are part of
// it: nothing says that apply will still reach their index here.
func (b *barriers) drain() []*barrier {
	out := b.waiting
	for _, r := range b.issued {
		out = append(out, r.barriers...)
	}
	for _, r := range b.confirmed {
		out = append(out, r.barriers...)
	}
	*b = barriers{}
	return out
}

func (b *barriers) empty() bool { return len(b.waiting)+len(b.issued)+len(b.confirmed) == 0 }
