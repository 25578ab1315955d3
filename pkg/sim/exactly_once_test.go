package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
)

// incrementer counts one key up by compare-and-set, as a client does that must not count twice: it repeats every write
// under its id until it knows what became of it.
type incrementer struct {
	c       *Cluster
	rng     *rand.Rand
	key     []byte
	session []byte
	next    uint64 // number of the next write

	applied, missed int
	last            kv.Outcome // of the last write
	// repeated counts writes that were applied although an attempt before had ended without an outcome.
	repeated int
}

// attemptTimeouts are short, so that many attempts end without an outcome.
const attemptMin, attemptMax = 5 * time.Millisecond, 400 * time.Millisecond

func (w *incrementer) execute(ctx context.Context, r *kv.Request) (kv.Response, *kv.Error) {
	ctx, cancel := context.WithTimeout(ctx, between(w.rng, attemptMin, attemptMax))
	defer cancel()
	own := *r // a request belongs to the node once it was executed
	res, err := w.c.Execute(ctx, w.rng.IntN(w.c.Size()), &own)
	return res, kv.AsError(err)
}

// read returns the counter and its version, however often it takes to ask.
func (w *incrementer) read(ctx context.Context) (count int, version uint64, ok bool) {
	for ctx.Err() == nil {
		res, err := w.execute(ctx, &kv.Request{Op: kv.OpGet, Level: kv.LevelStrong, Key: w.key})
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if res.Found {
			count, _ = strconv.Atoi(string(res.Value))
		}
		return count, res.Version, true
	}
	return 0, 0, false
}

// increment counts up once. It goes on after the faults until the outcome is known.
func (w *incrementer) increment(ctx, after context.Context) {
	count, version, ok := w.read(ctx)
	if !ok {
		return
	}
	r := &kv.Request{
		Op: kv.OpPut, Level: kv.LevelStrong, Key: w.key, Value: strconv.AppendInt(nil, int64(count+1), 10),
		Condition: kv.Condition{Kind: kv.ConditionVersion, Version: version},
		ID:        kv.OpID{Session: w.session, Sequence: w.next, Floor: w.next, Required: true},
	}
	w.next++
	unsure := false
	for after.Err() == nil {
		_, err := w.execute(after, r)
		switch {
		case err == nil:
			w.applied++
			w.last = kv.OutcomeApplied
			if unsure {
				w.repeated++
			}
			return
		case err.Code == kv.CodeVersionMismatch:
			w.missed++
			w.last = kv.OutcomeNotApplied
			return
		}
		unsure = unsure || err.Outcome != kv.OutcomeNotApplied
		time.Sleep(10 * time.Millisecond)
	}
}

// inquire asks what became of the last write, which is known, and of one that was never made, which is not.
func (w *incrementer) inquire(t *testing.T, ctx context.Context) {
	ask := func(sequence uint64) (kv.Response, *kv.Error) {
		id := kv.OpID{Session: w.session, Sequence: sequence}
		for {
			res, err := w.execute(ctx, &kv.Request{Op: kv.OpInquire, Level: kv.LevelStrong, Key: w.key, ID: id})
			if err == nil || err.Code == kv.CodeOperationNotFound || ctx.Err() != nil {
				return res, err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	res, err := ask(w.next - 1)
	require.Nil(t, err)
	require.Equal(t, w.last, res.Outcome)
	_, err = ask(w.next)
	require.Equal(t, kv.CodeOperationNotFound, err.Code)
	require.Equal(t, kv.OutcomeUnknown, err.Outcome)
}

// Several clients count the same few keys up, repeat whatever they do not know the outcome of, and in the end every key
// is what they think they have counted: a repetition that was applied again, or one whose first attempt was applied and
// that was answered with a miss, would show.
func TestRepeatedIncrementsAreCountedExactlyOnceUnderFaults(t *testing.T) {
	countExactlyOnce(t, nil)
}

// What a follower knows of repetitions comes from a snapshot when it was away: it has to know them as the others do.
func TestRepeatedIncrementsAreCountedExactlyOnceAcrossSnapshots(t *testing.T) {
	countExactlyOnce(t, shortLogs)
}

func countExactlyOnce(t *testing.T, tune func(*node.Config)) {
	const keys, perKey, length = 4, 2, 20 * time.Second
	for _, seed := range (verified{lane: 0}).seeds() {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			drawn := seed<<8 | 99
			plan, err := Scenario{Nodes: 3, Length: length, Faults: Faults(), FarSkews: true}.Draw(rand.New(rand.NewPCG(drawn, 13)))
			require.NoError(t, err)
			inTunedBubble(t, seed, 3, tune, func(t *testing.T, ctx context.Context, c *Cluster) {
				workers := make([]*incrementer, keys*perKey)
				for i := range workers {
					workers[i] = &incrementer{
						c: c, rng: rand.New(rand.NewPCG(drawn, uint64(i))), key: fmt.Appendf(nil, "count-%d", i%keys),
						session: fmt.Appendf(nil, "client-%d", i),
					}
				}
				faulty, stop := context.WithTimeout(ctx, length)
				defer stop()
				after, stopAfter := context.WithTimeout(ctx, length+2*time.Minute)
				defer stopAfter()
				var wg sync.WaitGroup
				for _, w := range workers {
					wg.Go(func() {
						for faulty.Err() == nil {
							w.increment(faulty, after)
							time.Sleep(20 * time.Millisecond)
						}
					})
				}
				fired, err := c.Nemesis(ctx, plan, func(string) {})
				require.NoError(t, err)
				require.NotEmpty(t, fired, "a quiet run proves nothing")
				wg.Wait()
				require.NoError(t, after.Err(), "a write's outcome never became known")
				total, repeated, missed := make(map[string]int), 0, 0
				for _, w := range workers {
					total[string(w.key)] += w.applied
					repeated, missed = repeated+w.repeated, missed+w.missed
				}
				for _, w := range workers[:keys] {
					count, _, ok := w.read(after)
					require.True(t, ok)
					require.Equal(t, total[string(w.key)], count, "%s counts what was acknowledged\nplan:\n%s", w.key, plan)
				}
				for _, w := range workers {
					w.inquire(t, after)
				}
				require.Positive(t, repeated, "no write was repeated after an unknown outcome")
				installed := received(c, 0) + received(c, 1) + received(c, 2)
				t.Logf("%v counted, %d after an unknown outcome, %d missed, faults %v, %d snapshots since the last starts",
					total, repeated, missed, fired, installed)
			})
		})
	}
}
