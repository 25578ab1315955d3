package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// proving is a prover of one replica whose world is the test's.
type proving struct {
	prover
	// takes is how long an attempt takes, clean what it finds, failure why it fails.
	takes   time.Duration
	clean   bool
	failure error
	asked   int
	// generation is the replica's.
	generation uint64
	reads      []bool // what each read was told
}

func newProving() *proving {
	p := &proving{clean: true, takes: 10 * time.Millisecond}
	p.ask = func(ctx context.Context, _ kv.PartitionID) (proof, error) {
		p.asked++
		select {
		case <-time.After(p.takes):
		case <-ctx.Done():
			return proof{}, ctx.Err()
		}
		return proof{clean: p.clean}, p.failure
	}
	p.present = func(kv.PartitionID) (uint64, kv.Epoch, bool) { return p.generation, 1, p.generation%2 == 0 }
	p.spawn = func(f func()) bool { go f(); return true }
	p.noted = func(proof, error) {}
	return p
}

// get reads with the bound; read, unless nil, is what happens in the middle of it.
func (p *proving) get(t *testing.T, limit time.Duration, read func()) (kv.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	res, err := p.serve(ctx, 1, bound{max: limit, began: time.Now()}, func(_ context.Context, clean bool) (kv.Response, error) {
		p.reads = append(p.reads, clean)
		if read != nil {
			read()
		}
		return kv.Response{}, nil
	})
	synctest.Wait()
	return res, err
}

func TestProofIsSharedUntilItIsOlderThanTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		res, err := p.get(t, time.Second, nil)
		require.NoError(t, err)
		require.Equal(t, p.takes, res.Staleness)
		p.failure = errors.New("cut off")
		for range 9 {
			time.Sleep(100 * time.Millisecond)
			res, err = p.get(t, time.Second, nil)
			require.NoError(t, err, "a proof is about the past: what is cut off since goes on")
			require.LessOrEqual(t, res.Staleness, time.Second)
		}
		require.Equal(t, 910*time.Millisecond, res.Staleness)
		require.Equal(t, 910*time.Millisecond, p.staleness(1))
		time.Sleep(100 * time.Millisecond)
		_, err = p.get(t, time.Second, nil)
		require.Error(t, err)
		_, err = p.get(t, 2*time.Second, nil)
		require.NoError(t, err, "it is fresh enough for who allows more")
	})
}

// What was acknowledged while the answer was under way need not be in it.
func TestProofIsDatedFromBeforeItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		p.takes = 400 * time.Millisecond
		res, err := p.get(t, time.Second, nil)
		require.NoError(t, err)
		require.Equal(t, 400*time.Millisecond, res.Staleness)
		p.failure = errors.New("cut off")
		time.Sleep(700 * time.Millisecond)
		_, err = p.get(t, time.Second, nil)
		require.Error(t, err, "it is 1.1 s old")
	})
}

// A proof that was asked for after the request had come is as good as a strong read, however long it took.
func TestBoundShorterThanAProofTakesIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		p.takes = 50 * time.Millisecond
		for range 3 {
			res, err := p.get(t, time.Millisecond, nil)
			require.NoError(t, err)
			require.Equal(t, 50*time.Millisecond, res.Staleness)
		}
		require.Equal(t, 3, p.asked)
	})
}

// The process stands still in the middle of a read, as under SIGSTOP.
func TestReadThatWasHeldUpIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		_, err := p.get(t, time.Second, nil)
		require.NoError(t, err)
		time.Sleep(400 * time.Millisecond)
		p.reads = nil
		held := false
		res, err := p.get(t, time.Second, func() {
			if !held {
				held = true
				time.Sleep(3 * time.Second)
			}
		})
		require.NoError(t, err)
		require.LessOrEqual(t, res.Staleness, time.Second)
		require.Len(t, p.reads, 2)
	})
}

func TestProofOfAReplicaThatWasRebuiltIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		_, err := p.get(t, time.Minute, nil)
		require.NoError(t, err)
		p.generation++
		_, err = p.get(t, time.Minute, nil)
		require.Equal(t, kv.CodeNotReady, kv.CodeOf(err), "it is in quarantine")
		p.generation++
		p.failure = errors.New("cut off")
		_, err = p.get(t, time.Minute, nil)
		require.Error(t, err, "it was proven of the replica that it replaced")
		p.failure = nil
		_, err = p.get(t, time.Minute, nil)
		require.NoError(t, err)
		rebuilt := false
		p.reads = nil
		_, err = p.get(t, time.Minute, func() {
			if !rebuilt {
				rebuilt = true
				p.generation += 2
			}
		})
		require.NoError(t, err)
		require.Len(t, p.reads, 2, "it was replaced while it was read")
	})
}

func TestReadIsToldWhetherTheStateWasAllThereWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		p.clean = false
		_, err := p.get(t, time.Second, nil)
		require.NoError(t, err)
		time.Sleep(200 * time.Millisecond)
		_, err = p.get(t, time.Second, nil)
		require.NoError(t, err)
		require.Equal(t, []bool{false, false}, p.reads)
		require.Zero(t, p.staleness(1), "nothing says how stale the replica alone is")
		time.Sleep(time.Second)
		p.clean = true
		_, err = p.get(t, time.Second, nil)
		require.NoError(t, err)
		p.clean = false
		time.Sleep(600 * time.Millisecond)
		_, err = p.get(t, time.Second, nil) // and renews, which finds something
		require.NoError(t, err)
		time.Sleep(100 * time.Millisecond)
		_, err = p.get(t, time.Second, nil)
		require.NoError(t, err)
		require.Equal(t, []bool{true, true, true}, p.reads[2:], "what was clean is good until it is too old")
	})
}

func TestProofIsRenewedBeforeItIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		for range 40 {
			res, err := p.get(t, time.Second, nil)
			require.NoError(t, err)
			require.LessOrEqual(t, res.Staleness, 620*time.Millisecond)
			time.Sleep(100 * time.Millisecond)
		}
		require.LessOrEqual(t, p.asked, 9, "not for each read")
	})
}

// What was unsettled may be settled a moment later; until that is known each read asks a majority.
func TestProofThatWasNotCleanIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		p.clean = false
		for i := range 12 {
			_, err := p.get(t, time.Minute, nil)
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond) // no attempt is under way
			synctest.Wait()
			p.clean = i >= 3
		}
		require.True(t, p.reads[len(p.reads)-1])
		require.LessOrEqual(t, p.asked, 4, "a clean proof is not tried again before it is half as old as it may be")
	})
}

func TestManyReadersShareOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProving()
		done := make(chan error, 50)
		for range cap(done) {
			go func() {
				_, err := p.serve(t.Context(), 1, bound{max: time.Second, began: time.Now()}, func(context.Context, bool) (kv.Response, error) {
					return kv.Response{}, nil
				})
				done <- err
			}()
		}
		for range cap(done) {
			require.NoError(t, <-done)
		}
		require.Equal(t, 1, p.asked)
	})
}

func TestAgeIsThatOfTheClockWhichSaysMore(t *testing.T) {
	began := time.Now()
	require.Equal(t, time.Hour, ageOf(began, began.Add(time.Hour)))
	// The machine was suspended: the monotonic clock stood still, and the wall clock was set when it woke up.
	woke := began.Round(0).Add(time.Hour)
	require.Equal(t, time.Hour, ageOf(began, woke))
	require.Zero(t, ageOf(began, began.Add(-time.Hour)))
}
