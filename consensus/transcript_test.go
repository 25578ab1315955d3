package consensus

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// The pure parts of the package, told as transcripts.

func TestPacking(t *testing.T) {
	var p packer
	var queue []*op
	entryOf := func(ops []*op) string {
		var out []string
		for _, o := range ops {
			out = append(out, string(o.command))
		}
		return strings.Join(out, " ")
	}
	datadriven.RunTest(t, "testdata/pack", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "limits":
			cfg := DefaultConfig()
			d.MaybeScanArgs(t, "commands", &cfg.EntryCommandsMax)
			d.MaybeScanArgs(t, "bytes", &cfg.EntryBytesMax)
			d.MaybeScanArgs(t, "entries", &cfg.EntriesPerIterationMax)
			p = newPacker(cfg)
			d.MaybeScanArgs(t, "scan", &p.scanMax)
			queue = nil
			return ""
		case "queue":
			// A word is key:command; a command without a key stands alone.
			for _, w := range strings.Fields(d.Input) {
				o := &op{command: []byte(w)}
				if key, _, ok := strings.Cut(w, ":"); ok {
					o.key = []byte(key)
				}
				queue = append(queue, o)
			}
			return ""
		case "pack":
			entries, rest := p.pack(queue)
			queue = rest
			var b strings.Builder
			for i, e := range entries {
				fmt.Fprintf(&b, "entry %d: %s\n", i+1, entryOf(e))
			}
			if len(rest) > 0 {
				fmt.Fprintf(&b, "left: %s\n", entryOf(rest))
			}
			return b.String()
		}
		d.Fatalf(t, "unknown command")
		return ""
	})
}

func TestPending(t *testing.T) {
	var p pendings
	names := func(all []*proposed) string {
		var out []string
		for _, e := range all {
			out = append(out, strconv.FormatUint(e.sequence, 10))
		}
		return strings.Join(out, " ")
	}
	datadriven.RunTest(t, "testdata/pending", func(t *testing.T, d *datadriven.TestData) string {
		var seq uint64
		var pos causal.Position
		d.MaybeScanArgs(t, "seq", &seq)
		d.MaybeScanArgs(t, "term", &pos.Term)
		d.MaybeScanArgs(t, "index", &pos.Index)
		switch d.Cmd {
		case "reset":
			p = pendings{}
		case "propose":
			p.add(&proposed{sequence: seq})
		case "appended":
			p.appended(seq, pos)
		case "committed":
			mine, over := p.committed(pos)
			var out []string
			if mine != nil {
				out = append(out, fmt.Sprintf("applied: %d", mine.sequence))
			}
			if len(over) > 0 {
				out = append(out, "never: "+names(over))
			}
			if len(p.placed) > 0 {
				out = append(out, "open: "+names(p.placed))
			}
			return strings.Join(out, "\n")
		case "stop":
			return "unknown: " + names(p.drain())
		default:
			d.Fatalf(t, "unknown command")
		}
		return ""
	})
}

func TestBarriers(t *testing.T) {
	var b barriers
	known := make(map[*barrier]string)
	names := func(all []*barrier) string {
		var out []string
		for _, w := range all {
			out = append(out, known[w])
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	datadriven.RunTest(t, "testdata/barriers", func(t *testing.T, d *datadriven.TestData) string {
		var id, tick, index uint64
		rounds := 2
		d.MaybeScanArgs(t, "id", &id)
		d.MaybeScanArgs(t, "tick", &tick)
		d.MaybeScanArgs(t, "index", &index)
		d.MaybeScanArgs(t, "rounds", &rounds)
		switch d.Cmd {
		case "reset":
			b = barriers{}
		case "ask":
			for _, a := range d.CmdArgs {
				w := &barrier{}
				known[w] = a.Key
				b.add(w)
			}
		case "issue":
			if !b.issue(id, tick, 0, rounds) {
				return "nothing issued"
			}
			return "round of " + names(b.issued[len(b.issued)-1].barriers)
		case "confirm":
			b.confirm(id, index)
		case "applied":
			return "answered: " + names(b.release(index))
		case "expire":
			b.expire(tick)
			return "waiting: " + names(b.waiting)
		case "deposed":
			return "refused: " + names(b.drain())
		default:
			d.Fatalf(t, "unknown command")
		}
		return ""
	})
}

func TestCoalescing(t *testing.T) {
	o := newOutbox()
	types := map[string]pb.MessageType{
		"ack": pb.MsgAppResp, "reject": pb.MsgAppResp, "heartbeat": pb.MsgHeartbeat, "beat-ack": pb.MsgHeartbeatResp,
		"append": pb.MsgApp, "news": pb.MsgApp, "vote": pb.MsgVoteResp,
	}
	describe := func(frame []byte) string {
		in, err := decodeFrame(frame)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, m := range in {
			s := fmt.Sprintf("g%d %s term=%d index=%d", m.group, m.msg.GetType(), m.msg.GetTerm(), m.msg.GetIndex())
			if m.msg.GetReject() {
				s += " reject"
			}
			if c := m.msg.GetContext(); c != nil {
				s += " ctx=" + string(c)
			}
			out = append(out, "  "+s)
		}
		return strings.Join(out, "\n")
	}
	datadriven.RunTest(t, "testdata/coalesce", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "send":
			var to, g, term, index uint64
			var ctx string
			d.ScanArgs(t, "to", &to)
			d.ScanArgs(t, "g", &g)
			d.ScanArgs(t, "term", &term)
			d.MaybeScanArgs(t, "index", &index)
			d.MaybeScanArgs(t, "ctx", &ctx)
			kind := d.CmdArgs[0].Key
			m := &pb.Message{Type: types[kind].Enum(), To: new(to), From: new(uint64(9)), Term: new(term), Index: new(index)}
			switch kind {
			case "reject":
				m.Reject = new(true)
			case "append":
				m.Entries = []*pb.Entry{{}}
			default:
			}
			if ctx != "" {
				m.Context = []byte(ctx)
			}
			o.add(kv.GroupID(g), m)
			return ""
		case "flush":
			bytesMax := 1 << 20
			d.MaybeScanArgs(t, "bytes", &bytesMax)
			if !d.HasArg("crowded") {
				o.tell()
			}
			var b strings.Builder
			for _, p := range o.order {
				p.frames(nil, nil, bytesMax, func(frame []byte, _ []kv.GroupID) {
					fmt.Fprintf(&b, "frame to %d:\n%s\n", p.to, describe(frame))
				})
			}
			o.reset()
			if b.Len() == 0 {
				return "nothing"
			}
			return b.String()
		}
		d.Fatalf(t, "unknown command")
		return ""
	})
}
