package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/api/peerpb"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

func TestWheelExpiresExactlyWhatANaiveListDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w wheel
		naive := map[*call]uint64{}
		var now uint64
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				c := &call{}
				tick := now + rapid.Uint64Range(0, 3*wheelSlots).Draw(t, "ahead")
				w.add(c, tick)
				naive[c] = max(tick, now+1)
			case 1:
				for c := range naive {
					w.remove(c)
					delete(naive, c)
					break
				}
			default:
				now += rapid.Uint64Range(0, 2*wheelSlots).Draw(t, "advance")
				got := map[*call]bool{}
				for _, c := range w.advance(now, nil) {
					got[c] = true
				}
				for c, tick := range naive {
					if (tick <= now) != got[c] {
						t.Fatalf("at tick %d: a call for tick %d expired: %v", now, tick, got[c])
					}
					if got[c] {
						delete(naive, c)
						delete(got, c)
					}
				}
				if len(got) > 0 {
					t.Fatal("a call expired that was not in the wheel")
				}
			}
			if w.count != len(naive) {
				t.Fatalf("the wheel counts %d calls; there are %d", w.count, len(naive))
			}
		}
	})
}

func TestWindowTakesEachRequestOnceLikeASetWould(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen := map[uint64]bool{}
		newest := rapid.Uint64Range(1<<20, 1<<62).Draw(t, "first")
		first := true
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			var id uint64
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0: // far ahead
				id = newest + rapid.Uint64Range(1, 3*windowIDs).Draw(t, "jump")
			case 1: // anywhere behind, also beyond the window
				id = newest - rapid.Uint64Range(0, windowIDs+10).Draw(t, "back")
			default:
				id = newest + rapid.Uint64Range(0, 3).Draw(t, "next")
			}
			want := !seen[id] && (first || id > newest || newest-id < windowIDs)
			if got := w.take(5, id); got != want {
				t.Fatalf("request %d (newest %d) taken: %v, want %v", id, newest, got, want)
			}
			if want {
				seen[id] = true
			}
			if first || id > newest {
				newest = id
			}
			first = false
		}
	})
}

func TestWindowStartsOverWithANewLifeAndRefusesTheOldOne(t *testing.T) {
	var w window
	require.True(t, w.take(1, 100))
	require.True(t, w.take(2, 100), "the same id in a new life is another request")
	require.False(t, w.take(2, 100))
	require.False(t, w.take(1, 101), "a straggler of the life before")
	require.True(t, w.take(3, 50), "ids of a new life may be lower: its disk may have been wiped")
}

func TestOutboxKeepsFramesInOrderAndKnowsWhatIsQueued(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var o outbox
		type queued struct {
			number uint64
			offset int
			id     uint64
		}
		var want []queued
		var id uint64
		total := 0
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1, 2:
				id++
				c := o.tail(200)
				start := len(c.buf)
				c.buf = append(openFrame(c.buf, kindWrite, id), bytes.Repeat([]byte{7}, rapid.IntRange(0, 150).Draw(t, "size"))...)
				closeFrame(c.buf, start)
				o.bytes += len(c.buf) - start
				total += len(c.buf) - start
				want = append(want, queued{c.number, start, id})
			case 3:
				if len(want) > 0 {
					w := want[rapid.IntRange(0, len(want)-1).Draw(t, "victim")]
					if buf := o.chunks[w.number-o.taken-1].buf; kind(buf[w.offset]) == kindWrite {
						o.void(w.number, w.offset)
					}
				}
			default:
				if o.head() == 0 {
					continue
				}
				buf := o.take()
				rest := buf[headerBytes:]
				total -= len(rest)
				for len(rest) > 0 {
					var f frame
					var err error
					if f, rest, err = nextFrame(rest); err != nil {
						t.Fatal(err)
					}
					if f.id != want[0].id || o.queued(want[0].number) {
						t.Fatalf("frame %d came; expected %d, queued %v", f.id, want[0].id, o.queued(want[0].number))
					}
					want = want[1:]
				}
				o.recycle(buf)
			}
			if o.bytes != total {
				t.Fatalf("the outbox counts %d bytes; there are %d", o.bytes, total)
			}
			for _, w := range want {
				if !o.queued(w.number) {
					t.Fatalf("frame %d is not queued any more", w.id)
				}
			}
		}
	})
}

func TestHeaderAndFramesComeBackAsTheyWere(t *testing.T) {
	h := header{from: 3, life: 1 << 63, cluster: 0xfeed, clock: causal.MakeHLC(99, 3), epoch: 12}
	b := make([]byte, headerBytes)
	h.put(b)
	b = append(openFrame(b, kindRead, 42), "payload"...)
	closeFrame(b, headerBytes)
	got, rest, err := decodeHeader(b)
	require.NoError(t, err)
	require.Equal(t, h, got)
	f, rest, err := nextFrame(rest)
	require.NoError(t, err)
	require.Equal(t, frame{kind: kindRead, id: 42, payload: []byte("payload")}, f)
	require.Empty(t, rest)
	for cut := range b {
		if _, rest, err := decodeHeader(b[:cut]); err == nil && len(rest) > 0 {
			_, _, err = nextFrame(rest)
			require.ErrorIs(t, err, ErrMalformed, "cut at %d", cut)
		}
	}
}

func genDot(t *rapid.T) causal.Dot {
	return causal.Dot{
		Node: kv.NodeID(rapid.Uint64Range(1, 5).Draw(t, "node")), Time: causal.HLC(rapid.Uint64Range(1, 1<<62).Draw(t, "time")),
	}
}

func genSet(t *rapid.T) causal.SiblingSet {
	var s causal.SiblingSet
	for range rapid.IntRange(0, 4).Draw(t, "siblings") {
		d := genDot(t)
		if s.Covers(d) {
			continue
		}
		s = s.Put(causal.Sibling{ID: genDot(t), Dot: d, Stamp: genStamp(t), Value: genBytes(t)}, nil)
	}
	return s
}

func genStamp(t *rapid.T) causal.Stamp {
	d := genDot(t)
	return causal.Stamp{Base: genPosition(t), Time: d.Time, Node: d.Node}
}

func genPosition(t *rapid.T) causal.Position {
	return causal.Position{Term: rapid.Uint64().Draw(t, "term"), Index: rapid.Uint64().Draw(t, "index")}
}

func genBytes(t *rapid.T) []byte {
	b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")
	if len(b) == 0 {
		return nil
	}
	return b
}

func TestBodiesComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := quorum.WriteRequest{
			Partition: kv.PartitionID(rapid.Uint16().Draw(t, "partition")), Epoch: 3, Key: genBytes(t), New: genDot(t), Set: genSet(t),
		}
		gotW, err := decodeWrite(3, appendWrite(nil, &w))
		require.NoError(t, err)
		requireSame(t, w.Set, gotW.Set)
		w.Set, gotW.Set = causal.SiblingSet{}, causal.SiblingSet{}
		require.Equal(t, w, gotW)

		r := quorum.ReadRequest{Partition: w.Partition, Epoch: 4, Key: w.Key}
		gotR, err := decodeRead(4, appendRead(nil, &r))
		require.NoError(t, err)
		require.Equal(t, r, gotR)

		wr := quorum.WriteReply{Accepted: rapid.Bool().Draw(t, "accepted"), Highest: genStamp(t), Base: genPosition(t)}
		gotWR, err := decodeWriteReply(appendWriteReply(nil, &wr))
		require.NoError(t, err)
		require.Equal(t, wr, gotWR)

		rr := quorum.ReadReply{HasStrong: rapid.Bool().Draw(t, "strong"), Set: genSet(t)}
		if rr.HasStrong {
			rr.Strong = storage.Strong{
				Value: genBytes(t), Deleted: rapid.Bool().Draw(t, "deleted"), Revision: rapid.Uint64().Draw(t, "revision"),
				Stamp: genStamp(t), Expiry: causal.HLC(rapid.Uint64().Draw(t, "expiry")),
			}
			for range rapid.IntRange(0, 3).Draw(t, "covered") {
				rr.Strong.Covered = append(rr.Strong.Covered, genDot(t))
			}
		}
		gotRR, err := decodeReadReply(appendReadReply(nil, &rr))
		require.NoError(t, err)
		requireSame(t, rr.Set, gotRR.Set)
		rr.Set, gotRR.Set = causal.SiblingSet{}, causal.SiblingSet{}
		require.Equal(t, rr, gotRR)
	})
}

// requireSame compares sets by their canonical bytes: a value may be nil on one side and empty on the other.
func requireSame(t require.TestingT, a, b causal.SiblingSet) {
	require.Equal(t, causal.AppendSet(nil, a), causal.AppendSet(nil, b))
}

func TestTimeoutNeverBecomesNone(t *testing.T) {
	for _, in := range []time.Duration{-time.Second, 0, 1, time.Millisecond, 1500 * time.Microsecond, time.Hour} {
		_, out, body, err := decodeRequestPrefix(appendRequestPrefix(nil, 1, in))
		require.NoError(t, err)
		require.Empty(t, body)
		require.Positive(t, out)
		require.GreaterOrEqual(t, out, in)
		require.Less(t, out, max(in, 0)+2*time.Millisecond)
	}
}

func TestErrorsTravelWhole(t *testing.T) {
	sent := &kv.Error{
		Code: kv.CodeNoLeader, Detail: "no leader", Outcome: kv.OutcomeUnknown, Retryable: true, Required: 2, Alive: 1, Acked: 1,
		CurrentVersion: 17, Leader: "n2", RetryAfter: time.Second,
	}
	body, answer, err := splitReply(appendReplyError(nil, sent))
	require.NoError(t, err)
	require.Nil(t, body)
	require.Equal(t, sent, answer)

	_, answer, err = splitReply(appendReplyError(nil, &quorum.StaleEpochError{Epoch: 9}))
	require.NoError(t, err)
	require.Equal(t, &quorum.StaleEpochError{Epoch: 9}, answer)

	_, answer, err = splitReply(appendReplyError(nil, errors.New("boom")))
	require.NoError(t, err)
	require.Equal(t, kv.OutcomeUnknown, kv.AsError(answer).Outcome, "what nobody classified proves nothing")
}

func TestRuleReadsAndWritesJSON(t *testing.T) {
	var rules []Rule
	require.NoError(t, json.Unmarshal([]byte(`[
		{"peer":"*","direction":"both","class":"raft","drop":0.25},
		{"peer":3,"direction":"in","delay":"50ms"},
		{"peer":"2","cut":true},
		{"duplicate":1}]`), &rules))
	require.Equal(t, []Rule{
		{Direction: DirectionBoth, Class: ClassRaft, Drop: 0.25},
		{Peer: 3, Direction: DirectionIn, Delay: 50 * time.Millisecond},
		{Peer: 2, Cut: true},
		{Duplicate: 1},
	}, rules)
	out, err := json.Marshal(rules)
	require.NoError(t, err)
	var again []Rule
	require.NoError(t, json.Unmarshal(out, &again))
	for i := range again {
		require.NoError(t, again[i].Validate())
		for _, peer := range []kv.NodeID{1, 2, 3} {
			for _, d := range []Direction{DirectionIn, DirectionOut} {
				require.Equal(t, rules[i].matches(peer, d, ClassRaft), again[i].matches(peer, d, ClassRaft))
			}
		}
	}
	for _, bad := range []string{
		`{}`, `{"drop":1.5}`, `{"drop":-0.1}`, `{"delay":"fast"}`, `{"delay":"2m"}`, `{"peer":"n1","cut":true}`, `{"peer":0,"cut":true}`,
		`{"direction":"up","cut":true}`, `{"class":"bulk","cut":true}`, `{"cut":true,"color":"red"}`, `{"delay":50}`, `7`,
	} {
		var r Rule
		require.Error(t, json.Unmarshal([]byte(bad), &r), bad)
	}
}

func TestDelayLineKeepsOrderAndBound(t *testing.T) {
	var out []byte
	full := 0
	l := newDelayLine(3*(frameBytes+1), func(d *delayed) { out = append(out, d.bytes[0]) }, func(*delayed) { full++ })
	l.add(2*time.Second, delayed{bytes: []byte("c")})
	l.add(time.Second, delayed{bytes: []byte("a")})
	l.add(time.Second, delayed{bytes: []byte("b")})
	l.add(time.Second, delayed{bytes: []byte("x")})
	require.Equal(t, 1, full, "what exceeds the bound is lost")
	require.Positive(t, l.releaseDue(time.Now()))
	require.Empty(t, out)
	l.releaseDue(time.Now().Add(1500 * time.Millisecond))
	l.releaseDue(time.Now().Add(time.Hour))
	require.Equal(t, "abc", string(out))
	require.Zero(t, l.bytes)
}

func TestRawBatchHasTheWireFormOfTheProto(t *testing.T) {
	c := newCodec()
	for _, size := range []int{0, 1, 100, 5000, 3 << 20} {
		for _, receipt := range []bool{false, true} {
			frames := make([]byte, size)
			for i := range frames {
				frames[i] = byte(rand.IntN(256))
			}
			data, err := c.Marshal(&rawBatch{frames: frames, receipt: receipt})
			require.NoError(t, err)
			var pb peerpb.Batch
			require.NoError(t, proto.Unmarshal(data.Materialize(), &pb))
			require.True(t, bytes.Equal(frames, pb.GetFrames()))
			require.Equal(t, receipt, pb.GetReceipt())

			encoded, err := proto.Marshal(&peerpb.Batch{Frames: frames, Receipt: receipt})
			require.NoError(t, err)
			half := len(encoded) / 2
			var raw rawBatch
			require.NoError(t, c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(encoded[:half]), mem.SliceBuffer(encoded[half:])}, &raw))
			require.True(t, bytes.Equal(frames, raw.frames))
			require.Equal(t, receipt, raw.receipt)
			raw.free()
			data.Free()
		}
	}
}
