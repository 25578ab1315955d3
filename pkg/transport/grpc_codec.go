package transport

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// The fields of peerpb.Batch.
const (
	batchFieldFrames  = 1
	batchFieldReceipt = 2
)

// rawBatch is peerpb.Batch without protobuf's copies: what is received stays in gRPC's buffer until it was delivered.
type rawBatch struct {
	frames  []byte
	receipt bool
	// buffer holds frames after a receive, until free.
	buffer mem.Buffer
}

func (b *rawBatch) free() {
	if b.buffer != nil {
		b.buffer.Free()
	}
	*b = rawBatch{}
}

// codec is protobuf, but for rawBatch, which it writes and reads itself, in the same wire form. gRPC picks the codec of
// a server for all of its services; that is why it stands in front of protobuf instead of having a name of its own.
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{proto: encoding.GetCodecV2(proto.Name)} }

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2. The batch is copied into a buffer of gRPC's pool, which gRPC gives back once it
// has written it: that may be long after SendMsg returned, when the sender's own memory is being filled again.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*rawBatch)
	if !ok {
		return c.proto.Marshal(v)
	}
	size := protowire.SizeTag(batchFieldFrames) + protowire.SizeBytes(len(b.frames))
	if b.receipt {
		size += protowire.SizeTag(batchFieldReceipt) + protowire.SizeVarint(1)
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(size)
	out := protowire.AppendTag((*buf)[:0], batchFieldFrames, protowire.BytesType)
	out = protowire.AppendBytes(out, b.frames)
	if b.receipt {
		out = protowire.AppendTag(out, batchFieldReceipt, protowire.VarintType)
		out = protowire.AppendVarint(out, 1)
	}
	*buf = out
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// Unmarshal implements encoding.CodecV2. A rawBatch must be freed by whoever received it.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*rawBatch)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	if err := b.parse(buffer.ReadOnlyData()); err != nil {
		buffer.Free()
		return err
	}
	b.buffer = buffer
	return nil
}

// parse reads the fields of peerpb.Batch and skips what it does not know.
func (b *rawBatch) parse(data []byte) error {
	*b = rawBatch{}
	for len(data) > 0 {
		field, wire, n := protowire.ConsumeTag(data)
		if n < 0 {
			return batchError(n)
		}
		data = data[n:]
		switch {
		case field == batchFieldFrames && wire == protowire.BytesType:
			b.frames, n = protowire.ConsumeBytes(data)
		case field == batchFieldReceipt && wire == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(data)
			b.receipt = v != 0
		default:
			n = protowire.ConsumeFieldValue(field, wire, data)
		}
		if n < 0 {
			return batchError(n)
		}
		data = data[n:]
	}
	return nil
}

func batchError(code int) error {
	return fmt.Errorf("%w: a batch: %w", ErrMalformed, protowire.ParseError(code))
}
