package quorum

import (
	"github.com/caprockdb/caprock/pkg/causal"
)

// sample judges the answer to one read by what all replicas hold: whether it was the newest, and how old it was. It is
// pure, and gone with its read.
type sample struct {
	answer versions
	keeps  bool
	// began is the clock's reading when the read began. What is stamped later than that, the read could not have known.
	began causal.HLC
	// waiting is the number of replicas whose answer is still to come.
	waiting int
	// partial says that a replica did not answer: then only what the others showed is known.
	partial bool
	// missed is the time of the oldest version that the answer lacked, 0 while none is known. A version between the two
	// may have been replaced everywhere, so that the answer's real age is at least what this says.
	missed causal.HLC
}

// see takes the answer of a replica that the read did not wait for.
func (s *sample) see(r *ReadReply) {
	s.waiting--
	top := s.answer.highest()
	note := func(at causal.Stamp) {
		if at.Time <= s.began && (s.missed == 0 || at.Time < s.missed) {
			s.missed = at.Time
		}
	}
	if r.HasStrong && r.Strong.Stamp.After(top) {
		note(r.Strong.Stamp)
	}
	all := s.answer
	all.add(r)
	for i := range r.Set.Siblings {
		w := &r.Set.Siblings[i]
		switch {
		case s.answer.set.Covers(w.Dot) || all.covers(w, s.keeps):
			// The answer had it, or the strong lane has: its own state was judged above.
		case s.keeps || w.Stamp.After(top):
			note(w.Stamp)
		}
	}
}

// lost notes that a replica did not answer.
func (s *sample) lost() {
	s.waiting--
	s.partial = true
}

// stale returns whether the answer was not the newest, and its age then, in seconds. known is false when a replica that
// did not answer might have held something newer.
func (s *sample) stale() (stale bool, ageSeconds float64, known bool) {
	if s.missed == 0 {
		return false, 0, !s.partial
	}
	return true, max(s.began.Time().Sub(s.missed.Time()).Seconds(), 0), true
}

// measure counts the sample once all replicas have had their say.
func (o *readOp) measure() {
	if o.sample == nil || o.sample.waiting > 0 {
		return
	}
	stale, age, known := o.sample.stale()
	o.sample = nil
	m, level := o.c.metrics, o.call.Request.Level
	if !known {
		m.samplesPartial.Inc()
		return
	}
	m.sampled[level].Inc()
	m.staleness[level].Observe(age)
	if stale {
		m.stale[level].Inc()
	}
}
