package transport

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/api/peerpb"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

func FuzzBatch(f *testing.F) {
	b := make([]byte, headerBytes)
	header{from: 1, life: 2, clock: 3}.put(b)
	for k := kindVoid; k < kindsEnd; k++ {
		start := len(b)
		b = append(openFrame(b, k, 4), byte(k))
		closeFrame(b, start)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, rest, err := decodeHeader(b)
		for err == nil && len(rest) > 0 {
			var fr frame
			before := len(rest)
			if fr, rest, err = nextFrame(rest); err == nil && before != len(rest)+len(fr.payload)+frameBytes {
				t.Fatal("a frame is not what it took")
			}
		}
	})
}

// FuzzDeliver hands arbitrary frames to a mux: whatever a peer sends, it answers or breaks the link.
func FuzzDeliver(f *testing.F) {
	w := quorum.WriteRequest{Partition: 1, Key: []byte("k"), Set: setOf("k"), New: dotOf("k")}
	var b []byte
	for k := kindVoid; k < kindsEnd; k++ {
		start := len(b)
		b = openFrame(b, k, 4+uint64(k))
		if k.isRequest() {
			b = appendRequestPrefix(b, 1, time.Second)
		}
		switch k {
		case kindWrite:
			b = appendWrite(b, &w)
		case kindHandOver:
			b = appendWrite(b, &quorum.WriteRequest{Partition: 1, Key: []byte("k"), Set: setOf("k")})
		case kindRead:
			b = appendRead(b, &quorum.ReadRequest{Key: []byte("k")})
		case kindForward:
			b = kv.AppendRequest(b, &kv.Request{Op: kv.OpGet, Key: []byte("k")})
		}
		closeFrame(b, start)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, frames []byte) {
		one := newStation(t, boardWire{newBoard(), 1}, 1)
		one.node.onFwd = func(kv.Request, time.Time) (kv.Response, error) { return kv.Response{}, nil }
		one.node.onOpaque = func(p []byte) ([]byte, error) { return p, nil }
		batch := make([]byte, headerBytes)
		header{from: 2, life: 5, clock: 1, epoch: 1, cluster: 1}.put(batch)
		if err := one.Deliver(2, slices.Concat(batch, frames)); err != nil {
			require.ErrorIs(t, err, ErrMalformed)
		}
	})
}

func FuzzBodies(f *testing.F) {
	w := quorum.WriteRequest{Partition: 1, Key: []byte("k"), Set: setOf("k"), New: dotOf("k")}
	f.Add(appendWrite(nil, &w))
	f.Add(appendReadReply(nil, &quorum.ReadReply{HasStrong: true, Strong: storage.Strong{Value: []byte("v"), Covered: []causal.Dot{dotOf("k")}}}))
	f.Add(appendWriteReply(nil, &quorum.WriteReply{Accepted: true}))
	f.Add(appendReplyError(nil, &quorum.StaleEpochError{Epoch: 1}))
	f.Add(appendReplyError(nil, kv.Errorf(kv.CodeInternal, "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What decodes encodes to something that decodes to the same.
		if w, err := decodeWrite(1, b); err == nil {
			again, err := decodeWrite(1, appendWrite(nil, &w))
			require.NoError(t, err)
			require.Equal(t, w, again)
		}
		if r, err := decodeRead(1, b); err == nil {
			again, err := decodeRead(1, appendRead(nil, &r))
			require.NoError(t, err)
			require.Equal(t, r, again)
		}
		if r, err := decodeWriteReply(b); err == nil {
			again, err := decodeWriteReply(appendWriteReply(nil, &r))
			require.NoError(t, err)
			require.Equal(t, r, again)
		}
		if r, err := decodeReadReply(b); err == nil {
			again, err := decodeReadReply(appendReadReply(nil, &r))
			require.NoError(t, err)
			require.Equal(t, r, again)
		}
		_, _, _, _ = decodeRequestPrefix(b)
		_, _, _ = splitReply(b)
	})
}

func FuzzRawBatch(f *testing.F) {
	seed, _ := proto.Marshal(&peerpb.Batch{Frames: []byte("frames"), Receipt: true})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var raw rawBatch
		var pb peerpb.Batch
		if proto.Unmarshal(b, &pb) != nil {
			return // protobuf also checks what it does not know; a batch is read by its two fields
		}
		if err := raw.parse(b); err != nil {
			t.Fatalf("protobuf reads it: %v", err)
		}
		if !bytes.Equal(raw.frames, pb.GetFrames()) || raw.receipt != pb.GetReceipt() {
			t.Fatalf("read %v, protobuf %v", raw, &pb)
		}
	})
}
