package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

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
		return &genMixed{genCommon: common}
	default:
		return &genRegister{genCommon: common}
	}
}

// pool is the keys that are shared by all clients: a number of slots, in each of which one key follows another.
type pool struct {
	prefix        string
	operationsMax int // of one key
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
		prefix: cfg.Prefix, operationsMax: keyOperationsMax, slots: make([]slot, cfg.Keys), slotOf: map[string]int{},
	}
	if cfg.Workload == WorkloadCausal {
		p.operationsMax = causalOperationsMax
	}
	for i := range p.slots {
		p.renew(i)
	}
	return p
}

func (p *pool) renew(i int) {
	delete(p.slotOf, p.slots[i].key)
	generation := p.slots[i].generation + 1
	p.slots[i] = slot{key: fmt.Sprintf("%s%d-%d", p.prefix, i, generation), generation: generation}
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
	if i, ok := p.slotOf[op.Key]; ok && op.IsWrite() && op.Outcome == OutcomeUnknown {
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

// final reads every key that was used.
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

// genRegister: 45 % puts, 45 % reads, 10 % deletes.
type genRegister struct{ genCommon }

func (g *genRegister) next(client int, r *rand.Rand) Task {
	key := g.pool.draw(r)
	switch n := r.IntN(100); {
	case n < 45:
		return g.write(kv.OpPut, kv.LevelStrong, key, g.value(client))
	case n < 90:
		return g.read(kv.LevelStrong, key)
	default:
		return g.write(kv.OpDelete, kv.LevelStrong, key, "")
	}
}

func (g *genRegister) final() []Task { return g.finals(kv.LevelStrong) }

// genMixed makes the operations of genRegister at level strong and eventual, half and half.
type genMixed struct{ genCommon }

func (g *genMixed) next(client int, r *rand.Rand) Task {
	key, level := g.pool.draw(r), kv.LevelStrong
	if r.IntN(2) == 0 {
		level = kv.LevelEventual
	}
	switch n := r.IntN(100); {
	case n < 45:
		return g.write(kv.OpPut, level, key, g.value(client))
	case n < 90:
		return g.read(level, key)
	default:
		return g.write(kv.OpDelete, level, key, "")
	}
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

// ownKey is a key that one client writes.
type ownKey struct {
	key      string
	level    kv.Level
	elements []string
}

// genSet: each client adds elements to a few keys of its own, and reads them now and then. A key ends when it is full, is
// deleted, or has an unknown write: what comes after that one could be buried by it.
type genSet struct {
	genCommon
	own    [][]ownKey
	opened []int
	all    []ownKey
}

func newGenSet(common genCommon) *genSet {
	g := &genSet{genCommon: common, own: make([][]ownKey, common.cfg.Clients), opened: make([]int, common.cfg.Clients)}
	for client := range g.own {
		g.own[client] = make([]ownKey, common.cfg.Keys)
		for i := range g.own[client] {
			g.open(client, i)
		}
	}
	return g
}

// open gives the client's place i a new key, at level eventual twice out of three times.
func (g *genSet) open(client, i int) {
	g.opened[client]++
	k := ownKey{key: fmt.Sprintf("%sc%d-%d", g.cfg.Prefix, client, g.opened[client]), level: kv.LevelEventual}
	if g.opened[client]%3 == 0 {
		k.level = kv.LevelStrong
	}
	g.own[client][i] = k
	g.all = append(g.all, k)
}

func (g *genSet) next(client int, r *rand.Rand) Task {
	i := r.IntN(len(g.own[client]))
	k := &g.own[client][i]
	switch n := r.IntN(100); {
	case n < 15:
		return g.read(k.level, k.key)
	case n < 18 && len(k.elements) > 0:
		return g.write(kv.OpDelete, k.level, k.key, "")
	}
	k.elements = append(k.elements, g.value(client))
	return g.write(kv.OpPut, k.level, k.key, strings.Join(k.elements, " "))
}

func (g *genSet) done(client int, op *Op, _ *kv.Response) {
	i := slices.IndexFunc(g.own[client], func(k ownKey) bool { return k.key == op.Key })
	if !op.IsWrite() || i < 0 {
		return
	}
	k := &g.own[client][i]
	switch {
	case op.Outcome == OutcomeFail && op.Kind == kv.OpPut:
		k.elements = k.elements[:len(k.elements)-1]
	case op.Outcome == OutcomeFail:
	case op.Kind == kv.OpDelete, op.Outcome == OutcomeUnknown, len(k.elements) >= listElementsMax:
		g.open(client, i)
	}
}

func (g *genSet) final() []Task {
	out := make([]Task, 0, len(g.all))
	for _, k := range g.all {
		out = append(out, g.finalRead(k.level, k.key))
	}
	return out
}

// genSession: each client counts up keys of its own, and reads its own and those of others.
type genSession struct{ genCommon }

func (g *genSession) key(client, i int) string {
	return g.cfg.Prefix + "c" + strconv.Itoa(client) + "-" + strconv.Itoa(i)
}

func (g *genSession) next(client int, r *rand.Rand) Task {
	i := r.IntN(g.cfg.Keys)
	switch n := r.IntN(100); {
	case n < 40:
		return g.write(kv.OpPut, kv.LevelEventual, g.key(client, i), g.value(client))
	case n < 70:
		return g.read(kv.LevelEventual, g.key(client, i))
	default:
		return g.read(kv.LevelEventual, g.key(r.IntN(g.cfg.Clients), i))
	}
}

func (g *genSession) final() []Task { return nil }

// heldContext is what a client holds of a key: the token that an answer gave it and the ids that this covers.
type heldContext struct {
	token            []byte
	covers, mayCover []string
}

func newContexts(clients int) []map[string]heldContext {
	out := make([]map[string]heldContext, clients)
	for i := range out {
		out[i] = map[string]heldContext{}
	}
	return out
}

// genCausal: reads; puts with the context of the client's last answer about the key, which may be long out of date; blind
// puts; a few deletes with a context.
type genCausal struct {
	genCommon
	contexts []map[string]heldContext
}

func (g *genCausal) next(client int, r *rand.Rand) Task {
	key := g.pool.draw(r)
	held, ok := g.contexts[client][key]
	n := r.IntN(100)
	switch {
	case n < 40 || !ok && n < 75:
		t := g.read(kv.LevelEventual, key)
		t.Request.Siblings = kv.SiblingsAll
		return t
	case n < 92 && ok:
		t := g.write(kv.OpPut, kv.LevelEventual, key, g.value(client))
		if n >= 88 {
			t = g.write(kv.OpDelete, kv.LevelEventual, key, "")
		}
		t.Request.Context, t.Covers, t.MayCover = held.token, held.covers, held.mayCover
		return t
	default:
		return g.write(kv.OpPut, kv.LevelEventual, key, g.value(client))
	}
}

func (g *genCausal) done(client int, op *Op, res *kv.Response) {
	g.genCommon.done(client, op, res)
	held := g.contexts[client]
	switch {
	case !g.pool.current(op.Key):
		delete(held, op.Key)
	case op.Outcome != OutcomeOK || len(res.Context) == 0:
	case op.Kind == kv.OpGet:
		held[op.Key] = heldContext{token: slices.Clone(res.Context), covers: op.Values()}
	case op.Kind == kv.OpPut:
		// The context that answers a write covers what the writer had read, and the write itself where it can.
		held[op.Key] = heldContext{
			token: slices.Clone(res.Context), covers: op.Covers, mayCover: append(slices.Clone(op.MayCover), op.Value),
		}
	default:
		delete(held, op.Key)
	}
}

func (g *genCausal) final() []Task {
	out := g.finals(kv.LevelEventual)
	for i := range out {
		out[i].Request.Siblings = kv.SiblingsAll
	}
	return out
}
