package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

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
