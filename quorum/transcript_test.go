package quorum

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// The transcripts write a dot as node@time, a position as term.index, and a stamp as term.index/time@node.

func parseDot(t *testing.T, s string) causal.Dot {
	node, at, ok := strings.Cut(s, "@")
	require.True(t, ok, "dot %q", s)
	return causal.Dot{Node: kv.NodeID(parseNumber(t, node)), Time: causal.HLC(parseNumber(t, at))}
}

func parsePosition(t *testing.T, s string) causal.Position {
	term, index, ok := strings.Cut(s, ".")
	require.True(t, ok, "position %q", s)
	return causal.Position{Term: parseNumber(t, term), Index: parseNumber(t, index)}
}

func parseStamp(t *testing.T, s string) causal.Stamp {
	base, at, ok := strings.Cut(s, "/")
	require.True(t, ok, "stamp %q", s)
	when, node, ok := strings.Cut(at, "@")
	require.True(t, ok, "stamp %q", s)
	return causal.Stamp{
		Base: parsePosition(t, base), Time: causal.HLC(parseNumber(t, when)), Node: kv.NodeID(parseNumber(t, node)),
	}
}

func parseNumber(t *testing.T, s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	require.NoError(t, err)
	return n
}

func formatDot(d causal.Dot) string { return fmt.Sprintf("%d@%d", d.Node, d.Time) }

func formatStamp(s causal.Stamp) string {
	return fmt.Sprintf("%d.%d/%d@%d", s.Base.Term, s.Base.Index, s.Time, s.Node)
}

func formatVector(v causal.Vector) string {
	out := make([]string, len(v))
	for i := range v {
		out[i] = formatDot(v[i])
	}
	return "[" + strings.Join(out, " ") + "]"
}

// formatSeen writes the dots that were seen by themselves behind the vector.
func formatSeen(s causal.Seen) string {
	out := formatVector(s.Vector)
	for _, d := range s.Dots {
		out += " + " + formatDot(d)
	}
	return out
}

func formatSet(s causal.SiblingSet) string {
	var b strings.Builder
	for _, w := range s.Siblings {
		value := strconv.Quote(string(w.Value))
		if w.Deleted {
			value = "deleted"
		}
		fmt.Fprintf(&b, "%s id=%s stamp=%s %s\n", formatDot(w.Dot), formatDot(w.ID), formatStamp(w.Stamp), value)
	}
	fmt.Fprintf(&b, "context %s\n", formatVector(s.Context))
	return b.String()
}

// parseSet reads lines like "1@10 base=1.5 v=x id=1@5 deleted" and "context 1@20 2@5".
func parseSet(t *testing.T, input string) causal.SiblingSet {
	var s causal.SiblingSet
	for line := range strings.Lines(input) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if fields[0] == "context" {
			for _, d := range fields[1:] {
				s.Context = s.Context.With(parseDot(t, d))
			}
			continue
		}
		w := causal.Sibling{Dot: parseDot(t, fields[0])}
		w.ID, w.Stamp = w.Dot, causal.Stamp{Time: w.Dot.Time, Node: w.Dot.Node}
		for _, f := range fields[1:] {
			name, value, _ := strings.Cut(f, "=")
			switch name {
			case "base":
				w.Stamp.Base = parsePosition(t, value)
			case "id":
				w.ID = parseDot(t, value)
			case "v":
				w.Value = []byte(value)
			case "deleted":
				w.Deleted = true
			default:
				t.Fatalf("what is %q?", f)
			}
		}
		// Merging puts it in order.
		s = causal.Merge(s, causal.SiblingSet{Siblings: []causal.Sibling{w}, Context: causal.Vector{w.Dot}})
	}
	return s
}

func TestAcceptTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/accept", func(t *testing.T, path string) {
		var v versions
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var arg string
			keeps := d.HasArg("keeps")
			switch d.Cmd {
			case "strong":
				v = versions{hasStrong: true, set: v.set}
				d.ScanArgs(t, "stamp", &arg)
				v.strong.Stamp = parseStamp(t, arg)
				v.strong.Revision = v.strong.Stamp.Base.Index
				v.strong.Deleted = d.HasArg("deleted")
				for _, id := range strings.Fields(d.Input) {
					v.strong.Covered = append(v.strong.Covered, parseDot(t, id))
				}
				return ""
			case "forget":
				v = versions{}
				return ""
			case "fence":
				d.ScanArgs(t, "stamp", &arg)
				v.fence = parseStamp(t, arg)
				return ""
			case "promise":
				var at uint64
				d.ScanArgs(t, "time", &at)
				v.pledge = causal.HLC(at)
				return ""
			case "held":
				v.set = parseSet(t, d.Input)
				return formatSet(v.set)
			case "write":
				w := WriteRequest{Set: parseSet(t, d.Input)}
				if d.HasArg("new") {
					d.ScanArgs(t, "new", &arg)
					w.New = parseDot(t, arg)
				}
				return runArrival(&v, &w, keeps)
			case "place":
				return runPlace(t, &v, d, keeps)
			default:
				t.Fatalf("unknown command %q", d.Cmd)
				return ""
			}
		})
	})
}

func runArrival(v *versions, w *WriteRequest, keeps bool) string {
	switch got := v.decide(w, keeps); got {
	case verdictMerge:
		v.set = v.merged(w.Set, keeps)
		return "merge\n" + formatSet(v.set)
	case verdictRefused:
		return "refuse, above " + formatStamp(v.refusal()) + "\n"
	case verdictCovered:
		return "ack: covered by the strong lane\n"
	case verdictHeld:
		return "ack: held\n"
	default:
		return "?"
	}
}

func runPlace(t *testing.T, v *versions, d *datadriven.TestData, keeps bool) string {
	var arg, base string
	d.ScanArgs(t, "dot", &arg)
	d.ScanArgs(t, "base", &base)
	dot := parseDot(t, arg)
	siblingsMax := 64
	d.MaybeScanArgs(t, "max", &siblingsMax)
	out := draft{deleted: d.HasArg("deleted")}
	for line := range strings.Lines(d.Input) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "value":
			out.value = []byte(value)
		case "seen":
			for _, c := range strings.Fields(value) {
				out.context = out.context.With(parseDot(t, c))
			}
		case "id":
			out.id = parseDot(t, value)
		case "above":
			out.above = parseStamp(t, value)
		case "appended":
			out.base = parsePosition(t, value)
		case "context":
			for _, c := range strings.Fields(value) {
				out.context.Vector = out.context.Vector.With(parseDot(t, c))
			}
		}
	}
	set, how, err := v.place(&out, dot, parsePosition(t, base), resolverThat(keeps), siblingsMax)
	require.NoError(t, err)
	switch how {
	case placementMade:
		v.set = set
		return formatSet(set) + "the writer gets " + formatSeen(out.writerContext(set, dot, keeps)) + "\n"
	case placementEarly:
		return "too early\n"
	case placementBehind:
		return "behind what may not be followed yet\n"
	case placementFull:
		return "too many siblings\n"
	case placementCovered:
		return "covered by the strong lane\n"
	default:
		return "?"
	}
}

func TestWriteVoteTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/write_vote", func(t *testing.T, path string) {
		var v writeVote
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				var w, n int
				d.ScanArgs(t, "w", &w)
				d.ScanArgs(t, "n", &n)
				v = newWriteVote(1, w, n)
				v.begin()
				return ""
			}
			// Each line of the input is an event.
			var b strings.Builder
			for line := range strings.Lines(d.Input) {
				fields := strings.Fields(line)
				voteEvent(t, &v, fields)
				late := fields[0] == "late"
				fmt.Fprintf(&b, "%-28s %s\n", strings.TrimSpace(line), v.next(late))
			}
			fmt.Fprintf(&b, "attempt %d: %d acked, outcome %s", v.attempt, v.votes.Acked(), v.outcome())
			if !v.above.IsZero() {
				fmt.Fprintf(&b, ", above %s, appended %d.%d", formatStamp(v.above), v.base.Term, v.base.Index)
			}
			return b.String() + "\n"
		})
	})
}

// voteEvent reads "ack NODE", "refuse NODE STAMP POSITION", "dead NODE", "lost NODE", "late", "restamp", "old-ack NODE".
func voteEvent(t *testing.T, v *writeVote, fields []string) {
	var node kv.NodeID
	if len(fields) > 1 {
		node = kv.NodeID(parseNumber(t, fields[1]))
	}
	switch fields[0] {
	case "ack":
		v.acked(v.attempt, node)
	case "old-ack":
		v.acked(v.attempt-1, node)
	case "refuse":
		v.refused(v.attempt, node, WriteReply{Highest: parseStamp(t, fields[2]), Base: parsePosition(t, fields[3])})
	case "dead":
		v.failure(v.attempt, node, kv.Errorf(kv.CodeNotReady, "no connection"))
	case "lost":
		v.failure(v.attempt, node, errors.New("the link broke"))
	case "restamp":
		v.begin()
	case "late", "look":
	default:
		t.Fatalf("unknown event %q", fields[0])
	}
}

func TestReadPlanTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/read_plan", func(t *testing.T, path string) {
		var p readPlan
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "start":
				var n, r int
				d.ScanArgs(t, "n", &n)
				d.ScanArgs(t, "r", &r)
				order := make([]kv.NodeID, n)
				for i := range order {
					order[i] = kv.NodeID(i + 1)
				}
				p = newReadPlan(order, r)
				return fmt.Sprintf("ask %d\n", p.start(r))
			case "answer", "fail":
				var node uint64
				d.ScanArgs(t, "node", &node)
				if d.Cmd == "answer" {
					return p.answered(kv.NodeID(node)).String() + "\n"
				}
				return fmt.Sprintf("%s, ask %d\n", p.failed(kv.NodeID(node)), p.rest())
			case "late":
				return fmt.Sprintf("ask %d\n", p.rest())
			default:
				t.Fatalf("unknown command %q", d.Cmd)
				return ""
			}
		})
	})
}

func TestReaderIsAnsweredFromTheLaneWithTheHigherStamp(t *testing.T) {
	at := func(index uint64, when causal.HLC) causal.Stamp {
		return causal.Stamp{Base: causal.Position{Term: 1, Index: index}, Time: when, Node: 1}
	}
	sibling := func(node kv.NodeID, s causal.Stamp, value string) causal.Sibling {
		d := causal.Dot{Node: node, Time: s.Time}
		s.Node = node
		return causal.Sibling{ID: d, Dot: d, Stamp: s, Value: []byte(value), Deleted: value == ""}
	}
	set := func(all ...causal.Sibling) (s causal.SiblingSet) {
		for _, w := range all {
			s = s.Put(w, nil)
		}
		return s
	}
	strong := storage.Strong{Value: []byte("strong"), Revision: 7, Stamp: at(7, 100)}
	deleted := storage.Strong{Deleted: true, Revision: 7, Stamp: at(7, 100)}
	for _, c := range []struct {
		name   string
		v      versions
		keeps  bool
		want   kv.Response
		wantTS causal.HLC
	}{
		{name: "nothing", want: kv.Response{Settled: true}},
		{name: "strong alone", v: versions{hasStrong: true, strong: strong}, want: kv.Response{Found: true, Settled: true, Version: 7, Value: []byte("strong")}, wantTS: 100},
		{name: "strong delete", v: versions{hasStrong: true, strong: deleted, set: set(sibling(1, at(6, 999), "old"))}, want: kv.Response{Settled: true}},
		{name: "eventual alone", v: versions{set: set(sibling(1, at(1, 5), "e"))}, want: kv.Response{Found: true, Value: []byte("e")}, wantTS: 5},
		{name: "eventual below, by position though its clock is ahead", v: versions{hasStrong: true, strong: strong, set: set(sibling(1, at(6, 999), "e"))}, want: kv.Response{Found: true, Settled: true, Version: 7, Value: []byte("strong")}, wantTS: 100},
		{name: "eventual above", v: versions{hasStrong: true, strong: strong, set: set(sibling(1, at(8, 1), "e"))}, want: kv.Response{Found: true, Value: []byte("e")}, wantTS: 1},
		{name: "tombstone above", v: versions{hasStrong: true, strong: strong, set: set(sibling(1, at(8, 1), ""))}, want: kv.Response{}},
		{
			name:  "tombstones alone are nothing",
			v:     versions{set: set(sibling(1, at(1, 1), ""), sibling(2, at(1, 2), ""))},
			keeps: true, want: kv.Response{},
		},
		{
			name:  "a write already in the strong lane is no sibling",
			v:     versions{hasStrong: true, strong: storage.Strong{Value: []byte("s"), Revision: 7, Stamp: at(1, 1), Covered: []causal.Dot{{Node: 2, Time: 2}}}, set: set(sibling(2, at(8, 2), "taken in"))},
			keeps: true, want: kv.Response{Found: true, Settled: true, Version: 7, Value: []byte("s")}, wantTS: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Resolver = LWW{}
			if c.keeps {
				r = Siblings{}
			}
			var got kv.Response
			require.NoError(t, c.v.resolve(&got, r, kv.SiblingsDefault))
			if c.wantTS != 0 {
				c.want.Timestamp = c.wantTS.Time()
			}
			require.Equal(t, c.want, got)
			require.Equal(t, got.Found, c.v.live(r))
		})
	}
}

func TestConfigRefusesNonsense(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for name, spoil := range map[string]func(*Config){
		"siblings max":          func(c *Config) { c.SiblingsMax = 0 },
		"attempts max":          func(c *Config) { c.AttemptsMax = 0 },
		"hedge delay":           func(c *Config) { c.HedgeDelay = 0 },
		"request timeout":       func(c *Config) { c.RequestTimeout = -1 },
		"replica timeout":       func(c *Config) { c.ReplicaTimeout = 0 },
		"calls per replica max": func(c *Config) { c.CallsPerReplicaMax = 0 },
		"repairs max":           func(c *Config) { c.RepairsMax = 0 },
		"read sample":           func(c *Config) { c.ReadSample = 1.5 },
		"stop timeout":          func(c *Config) { c.StopTimeout = 0 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		require.ErrorContains(t, cfg.Validate(), name)
	}
}
