package consensus

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// twinOp is an operation as the twin remembers it.
type twinOp struct {
	body  string
	reply WriteReply
}

// machineTwin is the machine as a map, with a memory that does not end.
type machineTwin struct {
	keys   map[string]storage.Strong
	ops    map[string]twinOp
	floors map[string]uint64
}

func (w *machineTwin) apply(op WriteOp, index uint64, now causal.HLC) WriteReply {
	name, body := fmt.Sprintf("%s/%d", op.ID.Session, op.ID.Sequence), fmt.Sprint(op.Key, op.Delete, op.Value, op.Condition, op.TTL, op.Batch)
	if !op.ID.IsZero() {
		switch known, found := w.ops[name]; {
		case op.ID.Sequence < w.floors[string(op.ID.Session)]:
			return WriteReply{Refused: RefusedForgotten}
		case found && known.body != body:
			return WriteReply{Refused: RefusedReuse}
		case found:
			known.reply.Repeated = true
			return known.reply
		}
	}
	var reply WriteReply
	if op.Batch == nil {
		reply = w.write(op, index, now)
	} else {
		before := maps.Clone(w.keys)
		items := make([]bool, len(op.Batch))
		for i, item := range op.Batch {
			reply = w.write(item, index, now)
			if items[i] = reply.Found; !reply.Applied {
				for _, seen := range op.Batch[:i+1] {
					if w.expired(before, seen, now) {
						delete(before, string(seen.Key)) // what it missed by is gone
					}
				}
				w.keys, reply.Missed, items = before, i, nil
				break
			}
		}
		if reply.Items = items; items != nil {
			reply.Found = false
		}
	}
	if !op.ID.IsZero() {
		w.ops[name] = twinOp{body, reply}
		w.floors[string(op.ID.Session)] = max(w.floors[string(op.ID.Session)], op.ID.Floor)
	}
	return reply
}

// expired reports whether the write looks at its key's value and finds it expired.
func (w *machineTwin) expired(keys map[string]storage.Strong, op WriteOp, now causal.HLC) bool {
	s := keys[string(op.Key)]
	return s.Expiry != 0 && s.Expiry <= now && (op.Delete || op.Condition.Kind != kv.ConditionNone)
}

func (w *machineTwin) write(op WriteOp, index uint64, now causal.HLC) WriteReply {
	if w.expired(w.keys, op, now) {
		delete(w.keys, string(op.Key))
	}
	s, live := w.keys[string(op.Key)]
	reply := WriteReply{Found: live && (op.Delete || op.Condition.Kind != kv.ConditionNone), Revision: s.Revision}
	switch op.Condition.Kind {
	case kv.ConditionVersion:
		reply.Applied = s.Revision == op.Condition.Version
	case kv.ConditionExists:
		reply.Applied = live
	default:
		reply.Applied = true
	}
	if reply.Applied {
		reply.Revision = index
		kept := s.Expiry
		s = storage.Strong{Value: op.Value, Revision: index}
		switch {
		case op.TTL == kv.TTLKeep:
			s.Expiry = kept
		case op.TTL > 0:
			s.Expiry = causal.MakeHLC(now.Millis()+op.TTL.Milliseconds(), 0)
		}
		w.keys[string(op.Key)] = s
		if op.Delete {
			delete(w.keys, string(op.Key))
		}
	}
	return reply
}

// drawSmallOp draws from so few keys, values and ids that repetitions, reuses and conditions that hold are frequent.
func drawSmallOp(t *rapid.T, index uint64) WriteOp {
	op := drawSmallWrite(t, index)
	if rapid.IntRange(0, 3).Draw(t, "batch") == 0 {
		first := op
		op = WriteOp{Batch: []WriteOp{first}}
		for range rapid.IntRange(0, 2).Draw(t, "writes") {
			next := drawSmallWrite(t, index)
			if !slices.ContainsFunc(op.Batch, func(w WriteOp) bool { return string(w.Key) == string(next.Key) }) {
				op.Batch = append(op.Batch, next)
			}
		}
	}
	if rapid.Bool().Draw(t, "id") {
		op.ID = opID(rapid.SampledFrom([]string{"s", "t"}).Draw(t, "session"), rapid.Uint64Range(0, 12).Draw(t, "sequence"), 0)
		op.ID.Floor = rapid.Uint64Range(0, op.ID.Sequence).Draw(t, "floor") / 2
	}
	return op
}

func drawSmallWrite(t *rapid.T, index uint64) WriteOp {
	op := WriteOp{Key: fmt.Appendf(nil, "k%d", rapid.IntRange(0, 3).Draw(t, "key")), Delete: rapid.IntRange(0, 3).Draw(t, "delete") == 0}
	if !op.Delete {
		op.Value = fmt.Appendf(nil, "v%d", rapid.IntRange(0, 1).Draw(t, "value"))
		op.TTL = time.Duration(rapid.SampledFrom([]int{0, 0, 5, 25}).Draw(t, "ttl")) * time.Second
	}
	switch kind := kv.ConditionKind(rapid.IntRange(0, 2).Draw(t, "condition")); kind {
	case kv.ConditionVersion:
		op.Condition = kv.Condition{Kind: kind, Version: rapid.Uint64Range(0, index).Draw(t, "version")}
	default:
		op.Condition.Kind = kind
	}
	if keeps := op.Condition.Kind == kv.ConditionExists || op.Condition.Version > 0; keeps && !op.Delete && rapid.Bool().Draw(t, "keep") {
		op.TTL = kv.TTLKeep
	}
	return op
}

// The machine against the twin, and against a second machine: whatever the entries, equal ones leave equal rows.
func TestMachineAgreesWithAMapAndWithItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, other := newTestMachine(t), newTestMachine(t)
		other.ahead = true // it makes no difference where an entry is decoded
		twin := &machineTwin{keys: map[string]storage.Strong{}, ops: map[string]twinOp{}, floors: map[string]uint64{}}
		for range rapid.IntRange(1, 25).Draw(t, "entries") {
			// A clock may fall back when another node leads.
			pause := time.Duration(rapid.IntRange(-1, 3).Draw(t, "pause")) * 10 * time.Second
			one.now, other.now = one.now+pause, other.now+pause
			passed := time.Duration(rapid.IntRange(0, 5).Draw(t, "passed")) * 200 * time.Millisecond
			one.uptime, other.uptime = one.uptime+passed, other.uptime+passed
			var commands [][]byte
			var want []WriteReply
			keys := make(map[string]bool)
			for range rapid.IntRange(1, 4).Draw(t, "commands") {
				op := drawSmallOp(t, one.index)
				writes := op.Batch
				if writes == nil {
					writes = []WriteOp{op}
				}
				if slices.ContainsFunc(writes, func(w WriteOp) bool { return keys[string(w.Key)] }) {
					continue // the packer's promise
				}
				for _, w := range writes {
					keys[string(w.Key)] = true
				}
				commands = append(commands, encodeCommand(op))
				want = append(want, twin.apply(op, one.index+1, causal.MakeHLC(one.now.Milliseconds(), 0)))
			}
			replies := one.apply(commands...)
			other.apply(commands...)
			for i, got := range replies {
				got.Stamp = causal.Stamp{}
				require.Equal(t, want[i], *got, "command %d of entry %d", i, one.index)
			}
			if rapid.IntRange(0, 3).Draw(t, "expire") == 0 {
				one.expire(t)
				other.expire(t)
				for key, s := range twin.keys {
					if s.Expiry != 0 && s.Expiry <= causal.MakeHLC(one.now.Milliseconds(), 0) {
						delete(twin.keys, key)
					}
				}
			}
		}
		for key := range twin.keys {
			s, found, err := one.engine.State().Strong(machineGroup, []byte(key))
			require.NoError(t, err)
			require.True(t, found && !s.Deleted)
			require.Equal(t, twin.keys[key].Revision, s.Revision)
			require.Equal(t, string(twin.keys[key].Value), string(s.Value))
		}
		for i := range 4 {
			key := fmt.Sprintf("k%d", i)
			s, found, err := one.engine.State().Strong(machineGroup, []byte(key))
			require.NoError(t, err)
			_, want := twin.keys[key]
			require.Equal(t, want, found && !s.Deleted, key)
			require.Equal(t, twin.keys[key].Expiry, s.Expiry)
		}
		require.Equal(t, one.rows(), other.rows())
	})
}
