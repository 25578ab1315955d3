package verify

import (
	"math/rand/v2"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// expirySlots is how many slots the expiry workload has for each key asked for: each key is to be left alone for long
	// enough to expire, and its life is counted in operations.
	expirySlots = 16
	// expiryMin and expiryMax bound how long values are to be there. They are well above expirySlack, or nothing could be
	// said about values that vanish early.
	expiryMin, expiryMax = 600 * time.Millisecond, 2500 * time.Millisecond
	// expiryAfter is for how long after its expiry, at most, a key is mostly read.
	expiryAfter = time.Second
)

// genExpiry: reads, and writes of values that expire and of such that do not, some conditional. A key is mostly left alone
// until its value has expired, and for a while after that.
type genExpiry struct {
	genCommon
	known []map[string]uint64
	// now is the latest reading of the clock in any answer; quiet says, by key, until when it is left alone.
	now   time.Duration
	quiet map[string]time.Duration
}

func newGenExpiry(common genCommon) *genExpiry {
	return &genExpiry{genCommon: common, known: newKnown(common.cfg.Clients), quiet: map[string]time.Duration{}}
}

func (g *genExpiry) next(client int, r *rand.Rand) Task {
	key := g.pool.draw(r)
	writes := 50
	if g.now < g.quiet[key] {
		writes = 5
	}
	if r.IntN(100) >= writes {
		return g.read(kv.LevelStrong, key)
	}
	t := g.write(kv.OpPut, kv.LevelStrong, key, "")
	n := r.IntN(10)
	if n == 0 {
		t = g.write(kv.OpDelete, kv.LevelStrong, key, "")
	} else {
		t.Request.Value = []byte(g.value(client))
	}
	version, ok := g.known[client][key]
	switch {
	case n < 6:
	case ok && n < 9:
		t.Request.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	case n == 9:
		t.Request.Condition = kv.Condition{Kind: kv.ConditionVersion} // the key must not exist
	}
	if t.Request.Op == kv.OpPut && r.IntN(3) > 0 {
		spread := (expiryMax - expiryMin) / time.Millisecond
		t.Request.TTL = expiryMin + time.Duration(r.Int64N(int64(spread)))*time.Millisecond
		g.quiet[key] = g.now + t.Request.TTL + time.Duration(r.Int64N(int64(expiryAfter)))
	}
	return t
}

func (g *genExpiry) done(client int, op *Op, res *kv.Response) {
	g.genCommon.done(client, op, res)
	g.now = max(g.now, op.Until)
	switch {
	case !g.pool.current(op.Key):
		delete(g.known[client], op.Key)
		delete(g.quiet, op.Key)
	case op.Outcome != OutcomeOK:
	case op.Kind == kv.OpDelete && !op.Missed, op.Answered() && !op.Found:
		g.known[client][op.Key] = 0
	default:
		g.known[client][op.Key] = op.Version
	}
}

func (g *genExpiry) final() []Task { return g.finals(kv.LevelStrong) }
