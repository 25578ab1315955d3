package verify

import (
	"math/rand/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// genBatch: listings of a tag, atomic batches on its keys, many of them on conditions of what was listed, and some
// operations on single keys.
type genBatch struct {
	genCommon
	// listed is, by client, the tag that it has just listed, and what it knows of the versions of the tag's keys.
	listed []tagSeen
}

type tagSeen struct {
	tag      string
	versions [batchKeys]uint64
}

func newGenBatch(common genCommon) *genBatch {
	return &genBatch{genCommon: common, listed: make([]tagSeen, common.cfg.Clients)}
}

func (g *genBatch) next(client int, r *rand.Rand) Task {
	seen := g.listed[client]
	g.listed[client] = tagSeen{}
	if seen.tag != "" && r.IntN(4) > 0 {
		return g.batch(client, seen, r)
	}
	tag := g.pool.draw(r)
	switch n := r.IntN(100); {
	case n < 55:
		return g.list(tag)
	case n < 75:
		return g.batch(client, tagSeen{tag: tag}, r)
	case n < 85:
		return g.read(kv.LevelStrong, groupKey(tag, r.IntN(batchKeys)))
	case n < 95:
		return g.write(kv.OpPut, kv.LevelStrong, groupKey(tag, r.IntN(batchKeys)), g.value(client))
	default:
		return g.write(kv.OpDelete, kv.LevelStrong, groupKey(tag, r.IntN(batchKeys)), "")
	}
}

func (g *genBatch) list(tag string) Task {
	return Task{Request: kv.Request{
		Op: kv.OpList, Level: kv.LevelStrong, List: &kv.ListQuery{Prefix: []byte(tag), Limit: kv.ListItemsMax},
	}}
}

// batch writes two keys of the tag or more, in any order. Of a tag whose versions the client knows some writes depend on them.
func (g *genBatch) batch(client int, seen tagSeen, r *rand.Rand) Task {
	known := g.pool.current(seen.tag) && seen.versions != [batchKeys]uint64{} || r.IntN(4) == 0
	keys := r.Perm(batchKeys)[:2+r.IntN(batchKeys-1)]
	items := make([]kv.BatchItem, len(keys))
	for n, i := range keys {
		items[n] = kv.BatchItem{Op: kv.OpPut, Key: []byte(groupKey(seen.tag, i))}
		if r.IntN(6) == 0 {
			items[n].Op = kv.OpDelete
		} else {
			items[n].Value = []byte(g.value(client))
		}
		switch roll := r.IntN(10); {
		case !known:
		case roll < 4:
			items[n].Condition = kv.Condition{Kind: kv.ConditionVersion, Version: seen.versions[i]}
		case roll == 4:
			items[n].Condition.Kind = kv.ConditionExists
		}
	}
	return Task{Request: kv.Request{Op: kv.OpBatch, Level: kv.LevelStrong, Key: items[0].Key, Items: items}}
}

func (g *genBatch) done(client int, op *Op, res *kv.Response) {
	g.genCommon.done(client, op, res)
	if op.Kind != kv.OpList || op.Outcome != OutcomeOK {
		return
	}
	seen := tagSeen{tag: op.Key}
	for _, row := range op.Listed {
		if i, ok := (group{}).place(row.Key); ok {
			seen.versions[i] = row.Version
		}
	}
	g.listed[client] = seen
}

// final lists every tag that was used, and reads each of its keys.
func (g *genBatch) final() []Task {
	var out []Task
	for _, tag := range g.pool.used {
		t := g.list(tag)
		t.Final = true
		out = append(out, t)
		for i := range batchKeys {
			out = append(out, g.finalRead(kv.LevelStrong, groupKey(tag, i)))
		}
	}
	return out
}
