package verify

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// historyOf makes a history of operations whose times are set. It numbers them in the order of their calls.
func historyOf(ops ...Op) *History {
	h := NewHistory()
	slices.SortStableFunc(ops, func(a, b Op) int { return int(a.Call - b.Call) })
	for i := range ops {
		ops[i].ID = i
		h.advance(ops[i].Call)
	}
	h.ops = ops
	return h
}

// script makes the operations of hand-written histories. Each takes the time of its call and of its return; a return of
// 0 leaves it unknown.
type script struct {
	level kv.Level
	key   string
}

func (s script) op(kind kv.Op, call, end int64) Op {
	op := Op{Kind: kind, Level: s.level, Key: s.key, Call: call, Return: end, Outcome: OutcomeOK}
	if end == 0 {
		op.Return, op.Outcome = Never, OutcomeUnknown
	}
	return op
}

func (s script) put(call, end int64, value string, version uint64) Op {
	op := s.op(kv.OpPut, call, end)
	op.Value = value
	if end != 0 {
		op.Version = version
	}
	return op
}

func (s script) putIf(call, end int64, value string, expected, version uint64) Op {
	op := s.put(call, end, value, version)
	op.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: expected}
	return op
}

func (s script) missed(call, end int64, value string, expected, present uint64) Op {
	op := s.putIf(call, end, value, expected, present)
	op.Missed = true
	return op
}

func (s script) delete(call, end int64, found bool, version uint64) Op {
	op := s.op(kv.OpDelete, call, end)
	op.Found, op.Version = found, version
	return op
}

func (s script) get(call, end int64, value string, version uint64) Op {
	op := s.op(kv.OpGet, call, end)
	op.Found, op.Result, op.Version = true, value, version
	return op
}

func (s script) absent(call, end int64) Op { return s.op(kv.OpGet, call, end) }

// having gives a write a context.
func having(op Op, ids ...string) Op {
	op.Covers = ids
	return op
}

// final makes a read a final one.
func final(op Op) Op {
	op.Final = true
	return op
}

func failed(op Op) Op {
	op.Outcome, op.Code = OutcomeFail, kv.CodeOverloaded
	return op
}

// siblings is a read that was answered several versions; "" is a deleted one.
func (s script) siblings(call, end int64, values ...string) Op {
	op := s.op(kv.OpGet, call, end)
	op.Found = true
	for _, v := range values {
		op.Siblings = append(op.Siblings, Seen{Value: v, Deleted: v == ""})
	}
	return op
}

func kinds(res Result) []string {
	var out []string
	for _, a := range res.Anomalies {
		out = append(out, a.Kind)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func requireValid(t require.TestingT, res Result) {
	require.True(t, res.Valid, "%v", res.Anomalies)
	require.Empty(t, res.Anomalies)
}

// requireCaught checks that the anomaly is found, and that its text names operations.
func requireCaught(t *testing.T, res Result, kind string) {
	t.Helper()
	require.False(t, res.Valid)
	require.Contains(t, kinds(res), kind, "%v", res.Anomalies)
	for _, a := range res.Anomalies {
		if a.Kind == kind {
			require.NotEmpty(t, a.Text)
			require.NotEmpty(t, a.Ops)
			require.Contains(t, a.Text, "client 0 [")
		}
	}
}
