package node

import (
	"context"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

// Level bounded: a replica may answer by itself when it was proven, not too long ago, to hold everything that had been acknowledged
// (docs/adr/0012). A proof is a read barrier with its peek, dated by this node's own clock from before it was asked for. It is about
// the past and stays true whatever happens to leaders and networks since; it only grows older, and lasts no longer than the
// process and the generation of the replica that it is about.

const (
	// proofTimeout bounds an attempt at a proof, which goes on for others when the reader who began it has given up.
	proofTimeout = 5 * time.Second
	// proofPause is how long after an attempt the next one begins at the earliest that no reader waits for.
	proofPause = 20 * time.Millisecond
	// uncleanPause is how long after a proof that was not clean another one is tried: what was unsettled may have been settled, or was
	// only not known yet, as after a restart. Until then a majority is asked for each read.
	uncleanPause = 250 * time.Millisecond
	// proofTriesMax bounds the proofs of one read. Each but the first means that the read, or the process, was held up, or
	// that the replica was rebuilt meanwhile.
	proofTriesMax = 8
)

// proof says what this node's replica of a partition held at a moment.
type proof struct {
	// asked is when it was asked for; zero: there is no proof. All that was acknowledged to anybody before is in it.
	asked time.Time
	// clean says that the replica's strong state had everything: no majority held an eventual version beside it. Without, the state had
	// every strong write, and eventual ones have to be looked for.
	clean bool
	// generation is that of the replica: see consensus.Store.Sound.
	generation uint64
	epoch      kv.Epoch
}

// ageOf returns how long ago the moment was, by whichever clock says more. The monotonic clock is the one that counts; but it may have
// stood still while the machine was suspended. A wall clock that is set forward costs a proof, and nothing else.
func ageOf(asked, now time.Time) time.Duration {
	return max(now.Sub(asked), now.Round(0).Sub(asked.Round(0)), 0)
}

// bound is how stale an answer may be.
type bound struct {
	max time.Duration
	// began is when the request arrived here: a proof that was asked for since is fresh enough, however long it took.
	began time.Time
}

func (b bound) allows(asked, now time.Time) bool {
	if mutant.Planted == mutant.ProofNeverOld && !asked.IsZero() {
		return true
	}
	return !asked.IsZero() && (!asked.Before(b.began) || ageOf(asked, now) <= b.max)
}

// ledger is what was proven of one replica.
type ledger struct {
	// latest is the last proof, clean the last one that was clean.
	latest, clean proof
	// trying is the attempt under way, nil for none, and tried is when the last one ended.
	trying *attempt
	tried  time.Time
}

// attempt is a proof that is being asked for, by one for all who need it.
type attempt struct {
	asked time.Time
	done  chan struct{} // closed once err is set and the proof noted
	err   error
}

func (l *ledger) note(p proof) {
	if p.asked.After(l.latest.asked) {
		l.latest = p
	}
	if p.clean && p.asked.After(l.clean.asked) {
		l.clean = p
	}
}

// forget drops what was proven of another generation of the replica, or under another map.
func (l *ledger) forget(generation uint64, epoch kv.Epoch) {
	for _, p := range [...]*proof{&l.latest, &l.clean} {
		if (p.generation != generation || p.epoch != epoch) && mutant.Planted != mutant.ProofOutlivesReplica {
			*p = proof{}
		}
	}
}

// good returns a proof that is fresh enough, a clean one rather than a fresher one that is not.
func (l *ledger) good(b bound, now time.Time) (proof, bool) {
	for _, p := range [...]proof{l.clean, l.latest} {
		if b.allows(p.asked, now) {
			return p, true
		}
	}
	return proof{}, false
}

// ripe reports whether it is time to renew the proofs before somebody has to wait for that: they have lived half of what a reader
// allows, so that a replica which is cut off goes on for the other half.
func (l *ledger) ripe(b bound, now time.Time) bool {
	life := b.max / 2
	if !l.latest.clean {
		life = min(life, uncleanPause)
	}
	return l.trying == nil && ageOf(l.latest.asked, now) > life && now.Sub(l.tried) >= proofPause
}

// prover proves the replicas of this node.
type prover struct {
	// ask asks for a proof of the replica, and returns once the replica has applied what it says. It does not date it.
	ask func(context.Context, kv.PartitionID) (proof, error)
	// present returns the replica's generation, false when it cannot be read, and the map's epoch.
	present func(kv.PartitionID) (generation uint64, epoch kv.Epoch, sound bool)
	// spawn runs an attempt, and returns false when the node stops.
	spawn func(func()) bool
	// noted is told of each attempt that ended.
	noted func(proof, error)

	mu      sync.Mutex // guards ledgers and what is in them
	ledgers map[kv.PartitionID]*ledger
}

func (v *prover) of(p kv.PartitionID) *ledger {
	l := v.ledgers[p]
	if l == nil {
		if v.ledgers == nil {
			v.ledgers = map[kv.PartitionID]*ledger{}
		}
		l = &ledger{}
		v.ledgers[p] = l
	}
	return l
}

// serve reads from the replica within the bound and returns how stale the answer is at most. read reads, given whether the
// replica's own state is enough. The clock is looked at after the read: the process may have stood still in the middle of it.
func (v *prover) serve(
	ctx context.Context, p kv.PartitionID, b bound, read func(ctx context.Context, clean bool) (kv.Response, error),
) (kv.Response, error) {
	for range proofTriesMax {
		pr, err := v.prove(ctx, p, b)
		if err != nil {
			return kv.Response{}, err
		}
		res, err := read(ctx, pr.clean)
		if err != nil {
			return kv.Response{}, err
		}
		now := time.Now()
		generation, epoch, sound := v.present(p)
		intact := sound && generation == pr.generation && epoch == pr.epoch
		if (intact || mutant.Planted == mutant.ProofOutlivesReplica) && (b.allows(pr.asked, now) || mutant.Planted == mutant.ProofCheckedBefore) {
			v.renew(p, b, now)
			res.Staleness = ageOf(pr.asked, now)
			return res, nil
		}
	}
	return kv.Response{}, kv.Errorf(kv.CodeQuorumUnavailable, "the replica was held up, or replaced, %d times while it was read", proofTriesMax)
}

// prove returns a proof that is fresh enough, a new one if need be.
func (v *prover) prove(ctx context.Context, p kv.PartitionID, b bound) (proof, error) {
	for range proofTriesMax {
		generation, epoch, sound := v.present(p)
		if !sound {
			return proof{}, kv.Errorf(kv.CodeNotReady, "%w", errUnsound)
		}
		v.mu.Lock()
		l := v.of(p)
		l.forget(generation, epoch)
		if pr, ok := l.good(b, time.Now()); ok {
			v.mu.Unlock()
			return pr, nil
		}
		a := v.begin(p, l)
		v.mu.Unlock()
		if a == nil {
			return proof{}, kv.Errorf(kv.CodeNotReady, "the node is stopping")
		}
		select {
		case <-a.done:
			if a.err != nil && !a.asked.Before(b.began) {
				return proof{}, a.err
			}
		case <-ctx.Done():
			return proof{}, kv.Errorf(kv.CodeDeadlineExceeded, "the replica was not proven fresh in time: %w", context.Cause(ctx))
		}
	}
	return proof{}, kv.Errorf(kv.CodeQuorumUnavailable, "proofs of the replica were out of date %d times before they could be used", proofTriesMax)
}

// begin returns the attempt under way, or a new one; nil when the node stops. v.mu must be held.
func (v *prover) begin(p kv.PartitionID, l *ledger) *attempt {
	if l.trying != nil {
		return l.trying
	}
	a := &attempt{asked: time.Now(), done: make(chan struct{})}
	l.trying = a
	// The worker may begin at once, and then waits for the lock.
	if !v.spawn(func() { v.try(p, l, a) }) {
		l.trying = nil
		return nil
	}
	return a
}

// try makes an attempt. It is dated by when it was decided upon: whatever was acknowledged before that is proven to be there.
func (v *prover) try(p kv.PartitionID, l *ledger, a *attempt) {
	generation, epoch, sound := v.present(p)
	ctx, cancel := context.WithTimeout(context.Background(), proofTimeout)
	defer cancel()
	var pr proof
	err := error(kv.Errorf(kv.CodeNotReady, "%w", errUnsound))
	if sound {
		pr, err = v.ask(ctx, p)
	}
	pr.asked, pr.generation, pr.epoch = a.asked, generation, epoch
	if mutant.Planted == mutant.ProofDatedLate {
		pr.asked = time.Now()
	}
	if mutant.Planted == mutant.ProofUnclean {
		pr.clean = true
	}
	v.noted(pr, err)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		l.note(pr)
	}
	a.err = err
	l.trying, l.tried = nil, time.Now()
	close(a.done)
}

// renew begins another proof if it is time to.
func (v *prover) renew(p kv.PartitionID, b bound, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if l := v.of(p); l.ripe(b, now) {
		v.begin(p, l)
	}
}

// staleness returns the age of the last proof by which the replica could answer alone; zero: there is none.
func (v *prover) staleness(p kv.PartitionID) time.Duration {
	generation, epoch, _ := v.present(p)
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.of(p)
	l.forget(generation, epoch)
	if l.clean.asked.IsZero() {
		return 0
	}
	return ageOf(l.clean.asked, time.Now())
}
