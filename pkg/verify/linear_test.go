package verify

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

var k = script{kv.LevelStrong, "k"}

func TestHistoriesThatARegisterCanGiveAreValid(t *testing.T) {
	for name, ops := range map[string][]Op{
		"nothing":                       nil,
		"read of what was written":      {k.put(1, 2, "a", 5), k.get(3, 4, "a", 5)},
		"absent before the first write": {k.absent(1, 2), k.put(3, 4, "a", 5)},
		"overlapping read sees either":  {k.put(1, 2, "a", 5), k.put(3, 8, "b", 6), k.get(4, 5, "a", 5), k.get(6, 7, "b", 6)},
		"deleted":                       {k.put(1, 2, "a", 5), k.delete(3, 4, true, 6), k.absent(5, 6), k.delete(7, 8, false, 9)},
		"unknown write that was applied late": {
			k.put(1, 0, "u", 0), k.put(2, 3, "a", 5), k.get(4, 5, "a", 5), k.get(6, 7, "u", 9),
		},
		"unknown write that never was":          {k.put(1, 0, "u", 0), k.put(2, 3, "a", 5), k.get(4, 5, "a", 5)},
		"unknown delete that was applied":       {k.put(1, 2, "a", 5), k.delete(3, 0, false, 0), k.absent(4, 5)},
		"unread unknown write a delete found":   {k.put(1, 0, "u", 0), k.delete(2, 3, true, 5), k.absent(4, 5)},
		"unread unknown write that a miss saw":  {k.put(1, 0, "u", 0), k.missed(2, 3, "x", 4, 5), k.putIf(4, 5, "a", 5, 6)},
		"pending read and failed write":         {failed(k.put(1, 2, "f", 0)), k.op(kv.OpGet, 3, 0), k.absent(4, 5)},
		"compare and set":                       {k.putIf(1, 2, "a", 0, 5), k.missed(3, 4, "x", 0, 5), k.putIf(5, 6, "b", 5, 7)},
		"condition on a deleted key":            {k.put(1, 2, "a", 5), k.delete(3, 4, true, 6), k.putIf(5, 6, "b", 0, 7)},
		"unknown conditional write that missed": {k.put(1, 2, "a", 5), k.putIf(3, 0, "u", 4, 0), k.get(4, 5, "a", 5)},
	} {
		requireValid(t, CheckLinearizable(historyOf(ops...), 0))
		require.NotPanics(t, func() { require.NoError(t, Visualize(historyOf(ops...), nil, &bytes.Buffer{})) }, name)
	}
}

func TestHistoriesThatNoRegisterCanGiveAreCaught(t *testing.T) {
	const order = "not linearizable"
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"stale read":               {order, []Op{k.put(1, 2, "a", 5), k.put(3, 4, "b", 6), k.get(5, 6, "a", 5)}},
		"reads go back":            {order, []Op{k.put(1, 2, "a", 5), k.put(3, 9, "b", 6), k.get(4, 5, "b", 6), k.get(6, 7, "a", 5)}},
		"lost write":               {order, []Op{k.put(1, 2, "a", 5), k.absent(3, 4)}},
		"write after its failure":  {order, []Op{failed(k.put(1, 2, "f", 0)), k.get(3, 4, "f", 5)}},
		"read before its write":    {order, []Op{k.get(1, 2, "a", 5), k.put(3, 4, "a", 5)}},
		"future unknown write":     {order, []Op{k.get(1, 2, "u", 5), k.put(3, 0, "u", 0)}},
		"value out of thin air":    {order, []Op{k.put(1, 2, "a", 5), k.get(3, 4, "z", 6)}},
		"write that appears twice": {order, []Op{k.put(1, 2, "a", 5), k.put(3, 4, "b", 6), k.get(5, 6, "b", 6), k.get(7, 8, "a", 5)}},
		"unknown write twice": {order, []Op{
			k.put(1, 0, "u", 0), k.get(2, 3, "u", 4), k.put(4, 5, "b", 6), k.get(6, 7, "b", 6), k.get(8, 9, "u", 7),
		}},
		"resurrected delete":         {order, []Op{k.put(1, 2, "a", 5), k.delete(3, 4, true, 6), k.absent(5, 6), k.get(7, 8, "a", 5)}},
		"delete that found nothing":  {order, []Op{k.put(1, 2, "a", 5), k.delete(3, 4, false, 6)}},
		"lost update":                {order, []Op{k.put(1, 2, "a", 5), k.putIf(3, 4, "b", 5, 6), k.putIf(5, 6, "c", 5, 7)}},
		"both creations won":         {order, []Op{k.putIf(1, 4, "a", 0, 5), k.putIf(2, 3, "b", 0, 6)}},
		"miss of a version not seen": {order, []Op{k.put(1, 2, "a", 5), k.missed(3, 4, "x", 4, 7)}},
		"miss that was applied":      {order, []Op{k.put(1, 2, "a", 5), k.missed(3, 4, "x", 4, 5), k.get(5, 6, "x", 6)}},
		"versions go back":           {order, []Op{k.put(1, 2, "a", 7), k.put(3, 4, "b", 6)}},
		"another version read":       {order, []Op{k.put(1, 2, "a", 5), k.get(3, 4, "a", 6)}},
		"version given twice":        {"version given twice", []Op{k.put(1, 4, "a", 5), k.put(2, 3, "b", 5)}},
		"put without a version":      {"answer without a version", []Op{k.put(1, 2, "a", 0)}},
		"miss at the asked version":  {"miss at the asked version", []Op{k.put(1, 2, "a", 5), k.missed(3, 4, "x", 5, 5)}},
	} {
		t.Run(name, func(t *testing.T) {
			requireCaught(t, CheckLinearizable(historyOf(c.ops...), 0), c.kind)
			var page bytes.Buffer
			require.NoError(t, Visualize(historyOf(c.ops...), []string{"k"}, &page))
			require.True(t, strings.Contains(page.String(), "strong get k") || strings.Contains(page.String(), "strong put k"))
		})
	}
}

func TestExplanationNamesTheOperationThatDoesNotFit(t *testing.T) {
	h := historyOf(k.put(1, 2, "a", 5), k.put(3, 4, "b", 6), k.get(5, 6, "a", 5))
	res := CheckLinearizable(h, 0)
	require.Len(t, res.Anomalies, 1)
	require.Equal(t, []int{2, 0, 1}, res.Anomalies[0].Ops)
	require.Contains(t, res.Anomalies[0].Text, `#2 client 0 [5,6] strong get k -> "a" version 5`)
	require.Contains(t, res.Anomalies[0].Text, `after 2 of them the key is "b" version 6`)
}

func TestSearchThatIsCutOffIsNoPass(t *testing.T) {
	// Nothing tells in which order the deletes came, and the read at the end makes every order wrong.
	ops := []Op{k.put(1, 2, "a", 5)}
	for i := range int64(40) {
		ops = append(ops, k.putIf(10+i, 0, fmt.Sprint("u", i), uint64(100+i), 0), k.delete(100+i, 0, false, 0))
	}
	ops = append(ops, k.missed(1000, 1001, "x", 3, 50), k.get(1002, 1003, "nobody", 51))
	require.Equal(t, porcupine.Unknown, newSearch[register](ops, 20_000).verdict(0))
	res := CheckLinearizable(historyOf(ops...), time.Nanosecond)
	require.False(t, res.Valid)
	require.Equal(t, 1, res.Undecided)
	require.Equal(t, []string{"undecided"}, kinds(res))
}

func TestKeysAreJudgedApart(t *testing.T) {
	other := script{kv.LevelStrong, "other"}
	res := CheckLinearizable(historyOf(k.put(1, 2, "a", 5), other.put(3, 4, "b", 6), k.get(5, 6, "a", 5), other.absent(7, 8)), 0)
	require.False(t, res.Valid)
	require.Len(t, res.Anomalies, 1)
	require.Equal(t, "other", res.Anomalies[0].Key)
	require.Equal(t, 2, res.Keys)
	require.Equal(t, 4, res.Operations)
}

func TestStrongOperationsReflectEventualWritesOfTheSameKey(t *testing.T) {
	e := script{kv.LevelEventual, "k"}
	missed := historyOf(k.put(1, 2, "a", 5), e.put(3, 4, "e", 0), k.get(5, 6, "a", 5), e.get(7, 8, "e", 0))
	requireCaught(t, CheckMixed(missed, 0), "not linearizable")
	seen := historyOf(k.put(1, 2, "a", 5), e.put(3, 4, "e", 0), k.get(5, 6, "e", 7), k.putIf(7, 8, "b", 7, 9))
	requireValid(t, CheckMixed(seen, 0))
	back := historyOf(k.put(1, 2, "a", 5), e.put(3, 9, "e", 0), k.get(4, 5, "e", 7), k.get(6, 7, "a", 5))
	requireCaught(t, CheckMixed(back, 0), "not linearizable")
}

// drawRegisterRun draws a run of a register: the order in which operations take effect comes first, and each is then given
// a call before and a return after its point.
func drawRegisterRun(t *rapid.T, operationsMax int, width int64) []Op {
	var state struct {
		exists  bool
		value   string
		version uint64
	}
	clock := uint64(0)
	n := rapid.IntRange(1, operationsMax).Draw(t, "operations")
	ops := make([]Op, 0, n)
	for i := range int64(n) {
		point := 10_000 + 100*i
		call := point - rapid.Int64Range(1, width).Draw(t, "before")
		end := point + rapid.Int64Range(1, width).Draw(t, "after")
		present := state.version
		if !state.exists {
			present = 0
		}
		fate := rapid.IntRange(0, 9).Draw(t, "fate") // 0: unknown, applied; 1: unknown, not applied; 2: failed
		what := rapid.IntRange(0, 9).Draw(t, "what")
		var op Op
		apply := fate != 1 && fate != 2
		switch {
		case what < 3 && state.exists:
			op = k.get(call, end, state.value, state.version)
		case what < 3:
			op = k.absent(call, end)
		case what < 4:
			op = k.delete(call, end, state.exists, 0)
		default:
			op = k.put(call, end, fmt.Sprint("v", i), 0)
		}
		if what >= 7 {
			op.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: present}
			if rapid.IntRange(0, 2).Draw(t, "miss") == 0 {
				op.Condition.Version = present + 1
				op.Missed, op.Version, apply = true, present, false
			}
		}
		if op.IsWrite() && apply {
			clock += rapid.Uint64Range(1, 3).Draw(t, "gap")
			op.Version = clock
			state.exists, state.value, state.version = op.Kind == kv.OpPut, op.Value, clock
		}
		if fate < 3 {
			op.Missed, op.Found, op.Version = false, false, 0
			op.Outcome, op.Return = OutcomeUnknown, Never
			if fate == 2 || op.Kind == kv.OpGet {
				op.Outcome, op.Return = OutcomeFail, end
			}
		}
		ops = append(ops, op)
	}
	return ops
}

func TestEveryRunOfARegisterIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := historyOf(drawRegisterRun(t, 60, 400)...)
		requireValid(t, CheckLinearizable(h, 0))
		requireValid(t, CheckValues(h))
	})
}

// TestStaleReadInARunIsCaught plants a read of an overwritten value where nothing overlaps.
func TestStaleReadInARunIsCaught(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := drawRegisterRun(t, 20, 40)
		var old, current *Op
		for i := range ops {
			if op := &ops[i]; op.Wrote() && op.Kind == kv.OpPut {
				old, current = current, op
			}
		}
		if old == nil {
			t.Skip("fewer than two puts")
		}
		at := ops[len(ops)-1].Call + 1000
		ops = append(ops, k.get(at, at+1, old.Value, old.Version))
		require.False(t, CheckLinearizable(historyOf(ops...), 0).Valid)
	})
}

// twin decides by trying every order, every fate of each unknown write and every version that it may have got.
type twin struct {
	ops         []Op
	versionsMax uint64
}

type twinState struct {
	exists  bool
	value   string
	version uint64
}

func (w twin) possible(done []bool, s twinState) bool {
	left := false
	for i := range w.ops {
		op := &w.ops[i]
		if done[i] || op.Outcome == OutcomeFail || op.Outcome == OutcomeUnknown && op.Kind == kv.OpGet {
			continue
		}
		if op.Outcome == OutcomeOK {
			left = true
		}
		if !w.mayBeNext(i, done) {
			continue
		}
		for _, next := range w.after(op, s) {
			done[i] = true
			if w.possible(done, next) {
				return true
			}
			done[i] = false
		}
	}
	return !left // unknown writes that are left never take effect
}

func (w twin) mayBeNext(i int, done []bool) bool {
	for j := range w.ops {
		if !done[j] && w.ops[j].Outcome == OutcomeOK && w.ops[j].Return < w.ops[i].Call {
			return false
		}
	}
	return true
}

func (w twin) after(op *Op, s twinState) []twinState {
	present := s.version
	if !s.exists {
		present = 0
	}
	holds := op.Condition.Kind == kv.ConditionNone || op.Condition.Version == present
	switch {
	case op.Kind == kv.OpGet:
		if op.Found == s.exists && (!s.exists || op.Result == s.value && op.Version == s.version) {
			return []twinState{s}
		}
		return nil
	case op.Missed:
		if !holds && op.Version == present {
			return []twinState{s}
		}
		return nil
	case !holds:
		return nil
	case op.Outcome == OutcomeOK:
		if op.Version <= s.version || op.Kind == kv.OpDelete && op.Found != s.exists {
			return nil
		}
		return []twinState{{op.Kind == kv.OpPut, op.Value, op.Version}}
	}
	var out []twinState
	for v := s.version + 1; v <= w.versionsMax; v++ {
		out = append(out, twinState{op.Kind == kv.OpPut, op.Value, v})
	}
	return out
}

func TestVerdictsAreThoseOfTryingEveryOrder(t *testing.T) {
	verdicts := map[porcupine.CheckResult]int{}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "operations")
		ops := make([]Op, n)
		// Known versions are multiples of ten: there is room between them for unknown writes, which take any.
		version := func(name string) uint64 { return 10 * rapid.Uint64Range(1, 3).Draw(t, name) }
		for i := range ops {
			call := rapid.Int64Range(1, 20).Draw(t, "call")
			end := call + rapid.Int64Range(1, 12).Draw(t, "length")
			value := fmt.Sprint("v", i)
			other := fmt.Sprint("v", rapid.IntRange(0, n-1).Draw(t, "other"))
			switch rapid.IntRange(0, 8).Draw(t, "what") {
			case 0, 1:
				ops[i] = k.put(2*call, 2*end+1, value, version("put"))
			case 2:
				ops[i] = k.get(2*call, 2*end+1, other, version("get"))
			case 3:
				ops[i] = k.absent(2*call, 2*end+1)
			case 4:
				ops[i] = k.delete(2*call, 2*end+1, rapid.Bool().Draw(t, "found"), version("delete"))
			case 5:
				ops[i] = k.put(2*call, 0, value, 0)
			case 6:
				ops[i] = k.delete(2*call, 0, false, 0)
			case 7:
				ops[i] = k.putIf(2*call, 2*end+1, value, version("expected"), version("put"))
				ops[i].Missed = rapid.Bool().Draw(t, "missed")
			case 8:
				ops[i] = k.putIf(2*call, 0, value, version("expected"), 0)
			}
		}
		search := newSearch[register](ops, stepsPerKeyMax)
		got := search.verdict(0)
		want := porcupine.Illegal
		if (twin{ops, 49}).possible(make([]bool, n), twinState{}) {
			want = porcupine.Ok
		}
		verdicts[want]++
		require.Equal(t, want, got, "%v", ops)
	})
	require.NotZero(t, verdicts[porcupine.Ok])
	require.NotZero(t, verdicts[porcupine.Illegal])
}

func TestUnknownWritesDoNotSlowTheSearchDown(t *testing.T) {
	var ops []Op
	version := uint64(0)
	for i := range int64(keyOperationsMax) {
		at := 10 * (i + 1)
		switch {
		case i%4 == 1: // unknown, applied and read, or not applied
			ops = append(ops, k.put(at, 0, fmt.Sprint("u", i), 0))
			if i%8 == 1 {
				version++
				ops = append(ops, k.get(at+2, at+3, fmt.Sprint("u", i), version))
			}
		default:
			version++
			ops = append(ops, k.put(at, at+15, fmt.Sprint("v", i), version))
		}
	}
	s := newSearch[register](ops, stepsPerKeyMax)
	require.Equal(t, porcupine.Ok, s.verdict(0))
}
