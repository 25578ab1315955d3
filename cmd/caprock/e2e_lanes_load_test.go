package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	laneWriters, laneReaders = 16, 8
	// lanePause leaves the machine to the cluster, laneTimeout bounds an operation, laneVerifiers the keys that are read at once at the end
	// of a phase.
	lanePause     = 2 * time.Millisecond
	laneTimeout   = 20 * time.Second
	laneVerifiers = 64
	laneProblems  = 10
)

// laneKey is one key and what is known of it. Its values count upwards, and one writer alone writes them, one after another.
type laneKey struct {
	mu sync.Mutex
	// tried is the last value that was sent. floor is the highest that was acknowledged, or that a strong read answered: no strong read that
	// begins afterwards may answer less.
	tried, floor int
	// refused are the values that were certainly not written.
	refused map[int]bool
	// doubtful: nobody knows what became of the last write. It may take effect at any later time, so that the key is written no more.
	doubtful bool
}

// laneLoad is the keys of one prefix, and clients that write and read them at both levels.
type laneLoad struct {
	t      *testing.T
	client *client.Client
	prefix string
	keys   []laneKey
	// disturbed is set as long as operations may fail because a node is away, strongRefused while the policy has no strong lane.
	disturbed, strongRefused atomic.Bool

	mu       sync.Mutex
	done     map[string]int // operations by kind and how they ended
	problems []string
}

func newLaneLoad(t *testing.T, c *e2eCluster, prefix string, count int) *laneLoad {
	t.Helper()
	var endpoints []string
	for _, n := range c.nodes {
		endpoints = append(endpoints, n.grpc)
	}
	cl, err := client.NewClient(endpoints)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	return &laneLoad{t: t, client: cl, prefix: prefix, keys: make([]laneKey, count), done: map[string]int{}}
}

func (l *laneLoad) key(i int) string { return l.prefix + itoa(i) }

// problem notes what must not happen.
func (l *laneLoad) problem(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.problems) < laneProblems {
		l.problems = append(l.problems, fmt.Sprintf(format, args...))
	}
}

// count notes how an operation ended.
func (l *laneLoad) count(kind string, level kv.Level, err error) {
	ended := "ok"
	if err != nil {
		ended = string(kv.CodeOf(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done[kind+" "+level.String()+" "+ended]++
}

// tally returns the operations since the last tally, by kind and how they ended.
func (l *laneLoad) tally() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := maps.Clone(l.done)
	clear(l.done)
	return out
}

// excused reports whether the operation may have failed so: refused by a fence if its level can be, or in want of a node that is away.
func (l *laneLoad) excused(level kv.Level, err error, disturbed bool) bool {
	switch kv.CodeOf(err) {
	case kv.CodeLevelFenced:
		return level != kv.LevelStrong || l.strongRefused.Load()
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady, kv.CodeDeadlineExceeded, kv.CodeOverloaded:
		return disturbed
	}
	return false
}

// write writes the key's next value. Only the key's writer calls it.
func (l *laneLoad) write(ctx context.Context, i int, level kv.Level) {
	k := &l.keys[i]
	k.mu.Lock()
	if k.doubtful {
		k.mu.Unlock()
		return
	}
	k.tried++
	value := k.tried
	k.mu.Unlock()

	disturbed := l.disturbed.Load()
	r := kv.Request{Op: kv.OpPut, Level: level, Key: []byte(l.key(i)), Value: []byte(itoa(value))}
	if level == kv.LevelEventual {
		r.Quorum.W = 2
	}
	_, err := l.client.Do(ctx, r, client.Timeout(laneTimeout))
	disturbed = disturbed || l.disturbed.Load()
	l.count("put", level, err)
	if err != nil && !l.excused(level, err, disturbed) {
		l.problem("put %s=%d at level %s: %v", l.key(i), value, level, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.floor = max(k.floor, value)
	case kv.AsError(err).Outcome == kv.OutcomeUnknown:
		k.doubtful = true
	default:
		if k.refused == nil {
			k.refused = map[int]bool{}
		}
		if k.refused[value] = true; k.floor >= value {
			l.problem("put %s=%d at level %s was not applied (%v), and was read", l.key(i), value, level, err)
		}
	}
}

// read reads the key, and holds the answer against what is known.
func (l *laneLoad) read(ctx context.Context, i int, level kv.Level) error {
	k := &l.keys[i]
	k.mu.Lock()
	floor := k.floor
	k.mu.Unlock()
	disturbed := l.disturbed.Load()
	r := kv.Request{Op: kv.OpGet, Level: level, Key: []byte(l.key(i))}
	if level == kv.LevelEventual {
		r.Quorum.R = 2
	}
	res, err := l.client.Do(ctx, r, client.Timeout(laneTimeout))
	disturbed = disturbed || l.disturbed.Load()
	l.count("get", level, err)
	if err != nil {
		if !l.excused(level, err, disturbed) {
			l.problem("get %s at level %s: %v", l.key(i), level, err)
		}
		return err
	}
	value, err := strconv.Atoi(string(res.Value))
	if err != nil {
		l.problem("get %s at level %s: %v", l.key(i), level, err)
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if level == kv.LevelStrong {
		if value < floor {
			l.problem("a strong get of %s answered %d although %d was acknowledged or read before", l.key(i), value, floor)
		}
		k.floor = max(k.floor, value)
	}
	if value > k.tried || k.refused[value] {
		l.problem("get %s at level %s answered %d, which was refused or never written: %d was the last", l.key(i), level, value, k.tried)
	}
	return nil
}

// fill writes every key eventually, and every tenth strongly before.
func (l *laneLoad) fill(ctx context.Context) {
	l.t.Helper()
	var all errgroup.Group
	all.SetLimit(laneVerifiers)
	for i := range l.keys {
		all.Go(func() error {
			if i%10 == 0 {
				l.write(ctx, i, kv.LevelStrong)
			}
			l.write(ctx, i, kv.LevelEventual)
			return nil
		})
	}
	require.NoError(l.t, all.Wait())
	l.require()
}

// start has the clients write and read until the function that it returns is called.
func (l *laneLoad) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	levels := []kv.Level{kv.LevelStrong, kv.LevelEventual}
	for w := range laneWriters {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for ; ctx.Err() == nil; time.Sleep(lanePause) {
				if i := rng.IntN(len(l.keys)/laneWriters)*laneWriters + w; i < len(l.keys) {
					l.write(context.WithoutCancel(ctx), i, levels[rng.IntN(2)])
				}
			}
		})
	}
	for r := range laneReaders {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 2))
			for ; ctx.Err() == nil; time.Sleep(lanePause) {
				_ = l.read(context.WithoutCancel(ctx), rng.IntN(len(l.keys)), levels[rng.IntN(2)]) // counted, and noted if it is wrong
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	l.t.Cleanup(stop)
	return stop
}

// verify reads every key strongly.
func (l *laneLoad) verify(ctx context.Context) {
	l.t.Helper()
	var all errgroup.Group
	all.SetLimit(laneVerifiers)
	for i := range l.keys {
		all.Go(func() error { return l.read(ctx, i, kv.LevelStrong) })
	}
	require.NoError(l.t, all.Wait(), "a key that was written cannot be read")
	l.require()
}

// require fails the test if anything was wrong.
func (l *laneLoad) require() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(l.t, l.problems)
}

// doubtful counts the keys with a write that nobody knows the outcome of.
func (l *laneLoad) doubtful() (count int) {
	for i := range l.keys {
		l.keys[i].mu.Lock()
		if l.keys[i].doubtful {
			count++
		}
		l.keys[i].mu.Unlock()
	}
	return count
}
