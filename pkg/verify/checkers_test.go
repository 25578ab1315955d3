package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestAppendAnomaliesAreCaught(t *testing.T) {
	first, second := k.putIf(1, 2, "a", 0, 5), k.putIf(3, 4, "a b", 5, 6)
	requireValid(t, CheckAppend(historyOf(first, second, k.get(5, 6, "a b", 6), final(k.get(7, 8, "a b", 6)))))
	requireValid(t, CheckAppend(historyOf(first, k.putIf(3, 0, "a u", 5, 0), k.get(4, 5, "a", 5), final(k.get(6, 7, "a u", 9)))))
	requireValid(t, CheckAppend(historyOf(failed(k.putIf(1, 2, "f", 0, 5)), k.missed(3, 4, "m", 1, 0), final(k.absent(5, 6)))))
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"lost update":        {"acknowledged element lost", []Op{first, k.putIf(3, 4, "a b", 5, 6), k.putIf(5, 6, "a c", 5, 7), final(k.get(7, 8, "a c", 7))}},
		"order differs":      {"order differs", []Op{first, second, k.get(5, 6, "b a", 6), final(k.get(7, 8, "a b", 6))}},
		"lost write":         {"acknowledged element lost", []Op{first, second, final(k.get(5, 6, "a", 5))}},
		"all lost":           {"acknowledged element lost", []Op{first, second, final(k.absent(5, 6))}},
		"stale read":         {"acknowledged element lost", []Op{first, second, k.get(5, 6, "a", 5), final(k.get(7, 8, "a b", 6))}},
		"applied twice":      {"element twice", []Op{first, final(k.get(3, 4, "a a", 6))}},
		"failed append":      {"failed append read", []Op{first, failed(k.putIf(3, 4, "a f", 5, 6)), final(k.get(5, 6, "a f", 6))}},
		"missed append":      {"failed append read", []Op{first, k.missed(3, 4, "a m", 4, 5), final(k.get(5, 6, "a m", 6))}},
		"out of thin air":    {"element never appended", []Op{first, final(k.get(3, 4, "a z", 6))}},
		"against real time":  {"order against real time", []Op{k.putIf(1, 2, "b a", 0, 5), k.putIf(3, 4, "b", 0, 6), final(k.get(5, 6, "b a", 6))}},
		"never read at last": {"never read at the end", []Op{first, k.get(3, 4, "a", 5)}},
	} {
		t.Run(name, func(t *testing.T) { requireCaught(t, CheckAppend(historyOf(c.ops...)), c.kind) })
	}
}

func TestSetAnomaliesAreCaught(t *testing.T) {
	first, second := e.put(1, 2, "a", 0), e.put(3, 4, "a b", 0)
	requireValid(t, CheckSet(historyOf(first, second, final(e.get(5, 6, "a b", 0)))))
	requireValid(t, CheckSet(historyOf(first, e.put(3, 0, "a u", 0), final(e.get(5, 6, "a", 0)), final(e.get(7, 8, "a u", 0)))))
	requireValid(t, CheckSet(historyOf(first, e.delete(3, 4, true, 0), final(e.absent(5, 6)))))
	requireValid(t, CheckSet(historyOf(first, e.delete(3, 0, true, 0), final(e.absent(5, 6)), final(e.get(7, 8, "a", 0)))))
	requireValid(t, CheckSet(historyOf(first, e.delete(3, 4, true, 0), e.put(5, 6, "b", 0), final(e.get(7, 8, "b", 0)))))
	requireValid(t, CheckSet(historyOf(first, e.absent(3, 4), final(e.get(5, 6, "a", 0)))))
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"lost write":         {"acknowledged element lost", []Op{first, final(e.absent(3, 4))}},
		"buried write":       {"acknowledged element lost", []Op{first, second, final(e.get(5, 6, "a", 0))}},
		"resurrected delete": {"deleted key came back", []Op{first, e.delete(3, 4, true, 0), final(e.get(5, 6, "a", 0))}},
		"failed write":       {"element never added", []Op{first, failed(e.put(3, 4, "a f", 0)), final(e.get(5, 6, "a f", 0))}},
		"element twice":      {"element twice", []Op{first, final(e.get(5, 6, "a a", 0))}},
		"siblings":           {"siblings", []Op{first, second, final(e.siblings(5, 6, "a", "a b"))}},
		"never read at last": {"never read at the end", []Op{first, e.get(3, 4, "a", 0)}},
	} {
		t.Run(name, func(t *testing.T) { requireCaught(t, CheckSet(historyOf(c.ops...)), c.kind) })
	}
}

func TestValuesOutOfNowhereAreCaught(t *testing.T) {
	other := script{kv.LevelEventual, "other"}
	requireValid(t, CheckValues(historyOf(e.put(1, 4, "a", 0), e.get(2, 3, "a", 0), k.put(5, 0, "u", 0), e.siblings(6, 7, "a", "u"))))
	for name, c := range map[string]struct {
		kind string
		ops  []Op
	}{
		"thin air":     {"value never written", []Op{e.get(1, 2, "z", 0)}},
		"another key":  {"value of another key", []Op{e.put(1, 2, "a", 0), other.get(3, 4, "a", 0)}},
		"failed write": {"failed write read", []Op{failed(e.put(1, 2, "f", 0)), e.siblings(3, 4, "f", "")}},
		"missed write": {"failed write read", []Op{k.missed(1, 2, "m", 3, 0), k.get(3, 4, "m", 5)}},
		"too early":    {"value read before it was written", []Op{e.get(1, 2, "a", 0), e.put(3, 4, "a", 0)}},
		"broken run":   {"value not unique", []Op{e.put(1, 2, "a", 0), e.put(3, 4, "a", 0)}},
	} {
		t.Run(name, func(t *testing.T) { requireCaught(t, CheckValues(historyOf(c.ops...)), c.kind) })
	}
}

func TestSessionsThatGoBackAreReported(t *testing.T) {
	as := func(client int, op Op) Op {
		op.Client = client
		return op
	}
	in := historyOf(e.put(1, 2, "a", 0), as(1, e.get(3, 4, "a", 0)), e.put(5, 6, "b", 0), as(1, e.get(7, 8, "b", 0)), e.get(9, 10, "b", 0))
	requireValid(t, CheckSession(in, true))
	own := historyOf(e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), e.get(5, 6, "a", 0))
	back := historyOf(e.put(1, 2, "a", 0), e.put(3, 4, "b", 0), e.get(5, 6, "b", 0), e.absent(7, 8))
	requireCaught(t, CheckSession(own, true), "own write not read")
	requireCaught(t, CheckSession(back, true), "read went back")
	res := CheckSession(back, false)
	requireValid(t, res)
	require.Equal(t, 2, res.ObservedCount)
	shared := historyOf(e.put(1, 2, "a", 0), as(1, e.put(3, 4, "b", 0)), e.get(5, 6, "a", 0))
	requireValid(t, CheckSession(shared, true))
}

func TestReplicasThatDifferAreCaught(t *testing.T) {
	rows := func(pairs ...string) map[string][]byte {
		out := map[string][]byte{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = []byte(pairs[i+1])
		}
		return out
	}
	requireValid(t, CheckConvergence())
	requireValid(t, CheckConvergence(Dump{"p1", "n1", rows("a", "1")}, Dump{"p1", "n2", rows("a", "1")}, Dump{"p2", "n1", rows("b", "2")}))
	for name, other := range map[string]map[string][]byte{
		"other bytes":         rows("a", "2", "e", ""),
		"a row missing":       rows("e", ""),
		"a row more":          rows("a", "1", "e", "", "b", ""),
		"empty is not absent": rows("a", "1"),
	} {
		res := CheckConvergence(Dump{"p1", "n1", rows("a", "1", "e", "")}, Dump{"p1", "n2", other}, Dump{"p1", "n3", rows("a", "1", "e", "")})
		require.False(t, res.Valid, name)
		require.Len(t, res.Anomalies, 1, name)
		require.Contains(t, res.Anomalies[0].Text, "group p1: n1 holds", name)
	}
}

func TestAnomaliesAreBounded(t *testing.T) {
	var ops []Op
	for i := range int64(3 * anomaliesMax) {
		ops = append(ops, e.get(2*i+1, 2*i+2, fmt.Sprint(i), 0))
	}
	h := historyOf(ops...)
	report := NewReport(h, CheckValues(h), CheckLinearizable(h, 0))
	require.False(t, report.Valid)
	require.Len(t, report.Anomalies, anomaliesMax)
	require.Equal(t, 2*anomaliesMax, report.Results[0].Suppressed)
	require.Equal(t, []string{"k"}, report.Keys())
	require.Contains(t, report.String(), "100 more anomalies")
}

func TestOutcomesAreClassifiedHonestly(t *testing.T) {
	timeout := kv.Errorf(kv.CodeDeadlineExceeded, "late").WithOutcome(kv.OutcomeUnknown)
	mismatch := kv.Errorf(kv.CodeVersionMismatch, "no")
	mismatch.CurrentVersion = 7
	for name, c := range map[string]struct {
		kind kv.Op
		res  kv.Response
		err  error
		want Outcome
		miss bool
	}{
		"acknowledged":                        {kv.OpPut, kv.Response{Outcome: kv.OutcomeApplied, Version: 7}, nil, OutcomeOK, false},
		"success that says not applied":       {kv.OpPut, kv.Response{Version: 7}, nil, OutcomeOK, false},
		"success that does not know":          {kv.OpPut, kv.Response{Outcome: kv.OutcomeUnknown}, nil, OutcomeUnknown, false},
		"timed out":                           {kv.OpPut, kv.Response{}, timeout, OutcomeUnknown, false},
		"timed out, wrapped":                  {kv.OpDelete, kv.Response{}, fmt.Errorf("x: %w", timeout), OutcomeUnknown, false},
		"nobody knows":                        {kv.OpPut, kv.Response{}, errors.New("boom"), OutcomeUnknown, false},
		"the context ended":                   {kv.OpPut, kv.Response{}, context.DeadlineExceeded, OutcomeUnknown, false},
		"refused":                             {kv.OpPut, kv.Response{}, kv.Errorf(kv.CodeOverloaded, "full"), OutcomeFail, false},
		"condition missed":                    {kv.OpPut, kv.Response{}, mismatch, OutcomeOK, true},
		"missed after an attempt in the dark": {kv.OpPut, kv.Response{}, mismatch.WithOutcome(kv.OutcomeUnknown), OutcomeUnknown, false},
		"read":                                {kv.OpGet, kv.Response{Found: true, Version: 7}, nil, OutcomeOK, false},
		"read of nothing":                     {kv.OpGet, kv.Response{}, kv.Errorf(kv.CodeKeyNotFound, "x"), OutcomeOK, false},
		"read that failed":                    {kv.OpGet, kv.Response{}, timeout, OutcomeFail, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := NewHistory()
			target := TargetFunc(func(context.Context, int, *kv.Request) (kv.Response, error) { return c.res, c.err })
			op, _ := Record(t.Context(), h, target, 3, Task{Request: kv.Request{Op: c.kind, Key: []byte("k")}})
			require.Equal(t, c.want, op.Outcome)
			require.Equal(t, c.miss, op.Missed)
			require.Equal(t, c.want == OutcomeUnknown, op.Return == Never)
			require.Equal(t, h.Ops(), []Op{op})
			if c.want == OutcomeOK && name != "read of nothing" {
				require.EqualValues(t, 7, op.Version)
			}
		})
	}
}

func TestTimesOfAHistoryAreDistinctAndInOrder(t *testing.T) {
	h := NewHistory()
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for range 100 {
				id := h.Call(Op{Client: client, Kind: kv.OpGet})
				h.Note("x")
				h.Return(id, func(op *Op) { op.Outcome = OutcomeOK })
			}
		})
	}
	clients.Wait()
	seen := map[int64]bool{}
	last := int64(0)
	for i, op := range h.Ops() {
		require.Equal(t, i, op.ID)
		require.Greater(t, op.Call, last)
		require.Greater(t, op.Return, op.Call)
		last = op.Call
		seen[op.Call], seen[op.Return] = true, true
	}
	for _, n := range h.Notes() {
		seen[n.Time] = true
	}
	require.Len(t, seen, 3*800)
	require.Equal(t, Counts{Operations: 800, OK: 800}, h.Counts())
}

func TestHistoriesSurviveTheirFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := append(drawRegisterRun(t, 20, 300), drawCausalWrites(t, true)...)
		for i := range ops {
			op := &ops[i]
			op.Client, op.Detail = i%3, rapid.String().Draw(t, "detail")
			op.Key = rapid.String().Draw(t, "key")
			op.Quorum.R = rapid.IntRange(0, 3).Draw(t, "r")
		}
		ops = append(ops, final(e.siblings(90_000, 90_001, "a", "")), e.op(kv.OpGet, 90_002, 0))
		ops[len(ops)-1].Outcome = OutcomePending
		h := historyOf(ops...)
		h.notes = []Note{{Time: 3, Text: "cut"}, {Time: 50_000, Text: "healed\nall"}, {Time: 100_000, Text: ""}}
		var file bytes.Buffer
		require.NoError(t, h.Encode(&file))
		got, err := Decode(bytes.NewReader(file.Bytes()))
		require.NoError(t, err)
		require.Equal(t, h.Ops(), got.Ops())
		require.Equal(t, h.Notes(), got.Notes())
		require.EqualValues(t, 100_000, got.Now())
	})
}

func TestBrokenFilesAreRefused(t *testing.T) {
	var file bytes.Buffer
	require.NoError(t, historyOf(k.put(1, 2, "a", 5), k.get(3, 4, "a", 5)).Encode(&file))
	good := file.String()
	lines := strings.SplitAfter(good, "\n")
	for name, content := range map[string]string{
		"empty":          "",
		"no header":      lines[1],
		"another format": strings.Replace(good, `"history":1`, `"history":2`, 1),
		"cut short":      good[:len(good)-10],
		"a gap":          lines[0] + lines[2],
		"no such kind":   strings.Replace(good, `"kind":"put"`, `"kind":"pat"`, 1),
		"no such level":  strings.Replace(good, `"level":"strong"`, `"level":"weak"`, 1),
		"no such end":    strings.Replace(good, `"outcome":"ok"`, `"outcome":"fine"`, 1),
		"empty line":     good + "{}\n",
	} {
		_, err := Decode(strings.NewReader(content))
		require.ErrorIs(t, err, ErrMalformed, name)
	}
}
