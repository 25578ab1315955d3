package verify

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

func newGenerator(cfg Config) generator {
	common := genCommon{cfg: cfg, made: make([]int, cfg.Clients), pool: newPool(cfg)}
	switch cfg.Workload {
	case WorkloadCAS:
		return &genCAS{genCommon: common, known: newKnown(cfg.Clients)}
	case WorkloadAppend:
		return &genAppend{genCommon: common, seen: make([]appendSeen, cfg.Clients)}
	case WorkloadSet:
		return newGenSet(common)
	case WorkloadCausal:
		return &genCausal{genCommon: common, contexts: newContexts(cfg.Clients)}
	case WorkloadSession:
		return &genSession{genCommon: common}
	case WorkloadMixed:
		return &genMixed{genCAS{genCommon: common, known: newKnown(cfg.Clients)}}
	case WorkloadBatch:
		return newGenBatch(common)
	case WorkloadExpiry:
		return newGenExpiry(common)
	default:
		return &genRegister{genCommon: common}
	}
}

// tagFormat makes a {tag} of a prefix, a slot and a generation; keys of the slot begin with it.
const tagFormat = "%s{%d-%d}"

// pool is the keys that are shared by all clients: a number of slots, in each of which one key follows another.
type pool struct {
	prefix        string
	operationsMax int // of one key
	format        string
	slots         []slot
	slotOf        map[string]int // of keys in use
	used          []string       // every key ever used
}

type slot struct {
	key                 string
	generation          int
	operations, unknown int
	full                bool
}

func newPool(cfg Config) *pool {
	p := &pool{
		prefix: cfg.Prefix, operationsMax: keyOperationsMax, format: "%s%d-%d", slots: make([]slot, cfg.Keys), slotOf: map[string]int{},
	}
	switch cfg.Workload {
	case WorkloadCausal:
		p.operationsMax = causalOperationsMax
	case WorkloadBatch:
		p.operationsMax, p.format = tagOperationsMax, tagFormat
	case WorkloadExpiry:
		p.slots = make([]slot, expirySlots*cfg.Keys)
	}
	for i := range p.slots {
		p.renew(i)
	}
	return p
}

func (p *pool) renew(i int) {
	delete(p.slotOf, p.slots[i].key)
	generation := p.slots[i].generation + 1
	p.slots[i] = slot{key: fmt.Sprintf(p.format, p.prefix, i, generation), generation: generation}
	p.slotOf[p.slots[i].key] = i
	p.used = append(p.used, p.slots[i].key)
}

// draw picks a key for an operation.
func (p *pool) draw(r *rand.Rand) string {
	i := r.IntN(len(p.slots))
	s := &p.slots[i]
	if s.operations >= p.operationsMax || s.unknown >= keyUnknownMax || s.full {
		p.renew(i)
		s = &p.slots[i]
	}
	s.operations++
	return s.key
}

// current reports whether the key is still in use.
func (p *pool) current(key string) bool {
	_, ok := p.slotOf[key]
	return ok
}

// done counts the outcome of an operation on the key.
func (p *pool) done(op *Op) {
	key := op.Key
	if p.format == tagFormat {
		key = TagOf(key)
	}
	if i, ok := p.slotOf[key]; ok && op.IsWrite() && op.Outcome == OutcomeUnknown {
		p.slots[i].unknown++
	}
}

// retire lets no further operation begin on the key.
func (p *pool) retire(key string) {
	if i, ok := p.slotOf[key]; ok {
		p.slots[i].full = true
	}
}

// genCommon is what all generators share.
type genCommon struct {
	cfg  Config
	pool *pool
	made []int // values made, by client
}

// value returns a value that no other write of the run has.
func (g *genCommon) value(client int) string {
	g.made[client]++
	return fmt.Sprintf("c%d.%d", client, g.made[client])
}

func (g *genCommon) done(_ int, op *Op, _ *kv.Response) { g.pool.done(op) }

// finals reads every key that was used.
func (g *genCommon) finals(level kv.Level) []Task {
	out := make([]Task, 0, len(g.pool.used))
	for _, key := range g.pool.used {
		out = append(out, g.finalRead(level, key))
	}
	return out
}

func (g *genCommon) finalRead(level kv.Level, key string) Task {
	t := g.read(level, key)
	t.Final = true
	return t
}

func (g *genCommon) read(level kv.Level, key string) Task {
	r := kv.Request{Op: kv.OpGet, Level: level, Key: []byte(key)}
	if level == kv.LevelEventual {
		r.Quorum = kv.Quorum{N: g.cfg.Quorum.N, R: g.cfg.Quorum.R}
	}
	return Task{Request: r}
}

func (g *genCommon) write(op kv.Op, level kv.Level, key, value string) Task {
	r := kv.Request{Op: op, Level: level, Key: []byte(key)}
	if op == kv.OpPut {
		r.Value = []byte(value)
	}
	if level == kv.LevelEventual {
		r.Quorum = kv.Quorum{N: g.cfg.Quorum.N, W: g.cfg.Quorum.W}
	}
	return Task{Request: r}
}

// boundedRead reads a key from a replica that was proven fresh, with a bound between one that needs a new proof nearly each time and one that
// outlasts most faults.
func (g *genCommon) boundedRead(key string, r *rand.Rand) Task {
	bounds := [...]time.Duration{20 * time.Millisecond, 200 * time.Millisecond, time.Second, 10 * time.Second}
	return Task{Request: kv.Request{Op: kv.OpGet, Level: kv.LevelBounded, Key: []byte(key), MaxStaleness: bounds[r.IntN(len(bounds))]}}
}

// genRegister: 45 % puts, 30 % strong reads and 15 % bounded ones, 10 % deletes.
type genRegister struct{ genCommon }

func (g *genRegister) next(client int, r *rand.Rand) Task {
	key := g.pool.draw(r)
	switch n := r.IntN(100); {
	case n < 45:
		return g.write(kv.OpPut, kv.LevelStrong, key, g.value(client))
	case n < 75:
		return g.read(kv.LevelStrong, key)
	case n < 90:
		return g.boundedRead(key, r)
	default:
		return g.write(kv.OpDelete, kv.LevelStrong, key, "")
	}
}

func (g *genRegister) final() []Task { return g.finals(kv.LevelStrong) }

// genMixed makes the operations of genCAS, and as many eventual ones and bounded reads on the same keys.
type genMixed struct{ genCAS }

func (g *genMixed) next(client int, r *rand.Rand) Task {
	if r.IntN(2) == 0 {
		return g.genCAS.next(client, r)
	}
	key := g.pool.draw(r)
	switch n := r.IntN(100); {
	case n < 55:
		return g.write(kv.OpPut, kv.LevelEventual, key, g.value(client))
	case n < 70:
		return g.read(kv.LevelEventual, key)
	case n < 90:
		return g.boundedRead(key, r)
	default:
		return g.write(kv.OpDelete, kv.LevelEventual, key, "")
	}
}

func (g *genMixed) done(client int, op *Op, res *kv.Response) {
	if op.Level == kv.LevelStrong {
		g.genCAS.done(client, op, res)
		return
	}
	g.genCommon.done(client, op, res)
}

func (g *genMixed) final() []Task {
	return append(g.finals(kv.LevelStrong), g.finals(kv.LevelEventual)...)
}

// newKnown returns what each client knows of versions: by key, the last one it saw.
func newKnown(clients int) []map[string]uint64 {
	out := make([]map[string]uint64, clients)
	for i := range out {
		out[i] = map[string]uint64{}
	}
	return out
}

// genCAS: reads, writes on condition of the last version that the client saw, some on other conditions, a few without.
type genCAS struct {
	genCommon
	known []map[string]uint64
}

func (g *genCAS) next(client int, r *rand.Rand) Task {
	key := g.pool.draw(r)
	version, ok := g.known[client][key]
	n := r.IntN(100)
	switch {
	case n < 35 || !ok && n < 70:
		return g.read(kv.LevelStrong, key)
	case n < 85:
		// As known; 0, that the key must not exist, when nothing is.
	case n < 88:
		version = 0
	case n < 94:
		t := g.write(kv.OpDelete, kv.LevelStrong, key, "")
		t.Request.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
		return t
	case n < 97:
		t := g.write(kv.OpPut, kv.LevelStrong, key, g.value(client))
		t.Request.Condition.Kind = kv.ConditionExists
		return t
	default:
		return g.write(kv.OpPut, kv.LevelStrong, key, g.value(client))
	}
	t := g.write(kv.OpPut, kv.LevelStrong, key, g.value(client))
	t.Request.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	return t
}

func (g *genCAS) done(client int, op *Op, res *kv.Response) {
	g.genCommon.done(client, op, res)
	switch {
	case !g.pool.current(op.Key):
		delete(g.known[client], op.Key)
	case op.Outcome != OutcomeOK:
	case op.Kind == kv.OpDelete && !op.Missed, op.Answered() && !op.Found:
		g.known[client][op.Key] = 0
	default:
		g.known[client][op.Key] = op.Version
	}
}

func (g *genCAS) final() []Task { return g.finals(kv.LevelStrong) }

// appendSeen is the list that a client read and will extend.
type appendSeen struct {
	key, value string
	version    uint64
	ready      bool
}

// genAppend: a read, then a conditional put of the list with one more element. Now and then only a read.
type genAppend struct {
	genCommon
	seen []appendSeen
}

func (g *genAppend) next(client int, r *rand.Rand) Task {
	seen := g.seen[client]
	g.seen[client] = appendSeen{}
	if !seen.ready || r.IntN(5) == 0 {
		return g.read(kv.LevelStrong, g.pool.draw(r))
	}
	value := strings.TrimSpace(seen.value + " " + g.value(client))
	t := g.write(kv.OpPut, kv.LevelStrong, seen.key, value)
	t.Request.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: seen.version}
	return t
}

func (g *genAppend) done(client int, op *Op, res *kv.Response) {
	g.genCommon.done(client, op, res)
	if !op.Answered() || !g.pool.current(op.Key) {
		return
	}
	if len(strings.Fields(op.Result)) >= listElementsMax {
		g.pool.retire(op.Key)
		return
	}
	g.seen[client] = appendSeen{key: op.Key, value: op.Result, version: op.Version, ready: true}
}

func (g *genAppend) final() []Task { return g.finals(kv.LevelStrong) }
