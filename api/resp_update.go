package api

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Commands that answer or write something which depends on what a key holds read it, and then write on condition that it
// is still what was read. They are linearizable as both are, and need level strong.

const (
	// updateAttemptsMax bounds how often such a command starts anew because somebody else was quicker. With the turns below
	// these are clients of other nodes, of which in each round at least one gets on.
	updateAttemptsMax = 64
	// updatePauseMax bounds the pause before another attempt.
	updatePauseMax = 5 * time.Millisecond
	// turnsMax is how many groups of keys the turns tell apart.
	turnsMax = 256
)

// turns let the connections of this node that work on one key go one after the other: without them most would only make
// each other start anew. Each is a channel of one place, because a turn is held across requests.
type turns struct {
	seed  maphash.Seed
	slots [turnsMax]chan struct{}
}

func newTurns() *turns {
	t := &turns{seed: maphash.MakeSeed()}
	for i := range t.slots {
		t.slots[i] = make(chan struct{}, 1)
	}
	return t
}

func (t *turns) of(key []byte) chan struct{} { return t.slots[maphash.Bytes(t.seed, key)%turnsMax] }

// edit is what a command makes of a key.
type edit struct {
	op    kv.Op // 0: nothing is to be written
	value []byte
	ttl   time.Duration
}

func noEdit() edit { return edit{} }

// replace is a put that leaves it at when the key expires, if it does.
func replace(old *kv.Response, value []byte) edit {
	e := edit{op: kv.OpPut, value: value}
	if old.Found && !old.Expires.IsZero() {
		e.ttl = kv.TTLKeep
	}
	return e
}

// update reads the key and writes what decide makes of it, until nobody has written it in between. It returns what decide
// saw last. An error of decide ends it.
func (c *respConn) update(key []byte, decide func(old *kv.Response) (edit, *kv.Error)) (old kv.Response, err *kv.Error) {
	ctx, cancel := c.deadline()
	defer cancel()
	turn := c.s.turns.of(key)
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return old, kv.Errorf(kv.CodeDeadlineExceeded, "others have worked on the key for all of the time").WithOutcome(kv.OutcomeNotApplied)
	}
	for range updateAttemptsMax {
		if old, err = c.read(ctx, key); err != nil {
			return old, err.WithOutcome(kv.OutcomeNotApplied)
		}
		if old.Level != kv.LevelStrong {
			return old, kv.Errorf(kv.CodeConditionNeedsStrong, "the command depends on what the key holds, which needs level strong and not %s", old.Level)
		}
		e, err := decide(&old)
		if err != nil || e.op == 0 {
			return old, err
		}
		r := &kv.Request{
			Op: e.op, Level: c.level, Key: key, Value: e.value, TTL: e.ttl,
			Condition: kv.Condition{Kind: kv.ConditionVersion, Version: old.Version},
		}
		_, err = c.s.exec.execute(ctx, r)
		if err == nil || err.Code != kv.CodeVersionMismatch {
			return old, err
		}
		pause(ctx, rand.N(updatePauseMax))
	}
	return old, kv.Errorf(kv.CodeVersionMismatch, "others wrote the key first, %d times", updateAttemptsMax)
}

// pause waits, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
