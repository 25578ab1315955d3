package workload

import (
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Op is one generated operation. Value is shared between operations and must not be changed by a target.
type Op struct {
	Kind  kv.Op
	Level kv.Level
	Key   string
	Value []byte
	// Timeout bounds the operation. It is no deadline of the context, because a context with a deadline of its own for
	// each operation would cost the load generator as much as the operation.
	Timeout time.Duration
}

// keyDigits is the width of a key's number, so that all keys of a run have the same length and sort by number.
const keyDigits = 13

// valueWindows is how many different values a generator can draw, for want of one random block per operation, whose
// generation would cost the load generator more than sending it.
const valueWindows = 4096

// Generator draws operations. It is pure: the configuration and the random source decide everything. Not safe for
// concurrent use; each client of a run has its own.
type Generator struct {
	cfg   Config
	rng   *rand.Rand
	block []byte // random bytes; each value is a window of it
	buf   []byte // scratch for the next key
}

// NewGenerator returns a generator for a configuration that Validate accepts. The random source belongs to the generator from now on.
func NewGenerator(cfg Config, rng *rand.Rand) *Generator {
	block := make([]byte, cfg.ValueBytes+valueWindows)
	fillRandom(block, rng)
	return newGenerator(cfg, rng, block)
}

// newGenerator shares one block of random bytes between the clients of a run.
func newGenerator(cfg Config, rng *rand.Rand, block []byte) *Generator {
	return &Generator{cfg: cfg, rng: rng, block: block}
}

func fillRandom(b []byte, rng *rand.Rand) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// Next draws the next operation.
func (g *Generator) Next() Op {
	op := Op{Kind: g.kind(), Level: g.cfg.Level, Key: g.Key(g.rng.Int64N(g.cfg.Keys)), Timeout: g.cfg.Timeout}
	if op.Kind == kv.OpPut {
		start := g.rng.IntN(valueWindows)
		op.Value = g.block[start : start+g.cfg.ValueBytes : start+g.cfg.ValueBytes]
	}
	return op
}

func (g *Generator) kind() kv.Op {
	percent := g.rng.IntN(100)
	switch {
	case percent < g.cfg.Mix.GetPercent:
		return kv.OpGet
	case percent < g.cfg.Mix.GetPercent+g.cfg.Mix.DeletePercent:
		return kv.OpDelete
	default:
		return kv.OpPut
	}
}

// Key returns the key with the number, zero-padded to keyDigits.
func (g *Generator) Key(number int64) string {
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], number, 10)
	g.buf = append(g.buf[:0], g.cfg.KeyPrefix...)
	for range keyDigits - len(text) {
		g.buf = append(g.buf, '0')
	}
	g.buf = append(g.buf, text...)
	return string(g.buf)
}
