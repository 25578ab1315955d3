package transport

import (
	"fmt"

	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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
type codec struct{ pool *bufferPool }

func newCodec() codec { return codec{pool: new(bufferPool)} }

// Name implements encoding.CodecV2.
func (codec) Name() string { return grpcproto.Name }

// Marshal implements encoding.CodecV2. The message is written into a buffer of the pool, which gRPC gives back once it
// has sent it: that may be long after SendMsg returned, when the sender's own memory is being filled again.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	var buf *[]byte
	switch m := v.(type) {
	case *rawBatch:
		buf = c.pool.Get(m.size())
		*buf = m.appendTo((*buf)[:0])
	case proto.Message:
		var err error
		buf = c.pool.Get(proto.Size(m))
		// The size was computed just now and nobody changes a message that is being sent.
		if *buf, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend((*buf)[:0], m); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("transport: cannot send a %T: it is no protobuf message", v)
	}
	return mem.BufferSlice{mem.NewBuffer(buf, c.pool)}, nil
}

// Unmarshal implements encoding.CodecV2. A rawBatch must be freed by whoever received it.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	buffer := data.MaterializeToBuffer(c.pool)
	switch m := v.(type) {
	case *rawBatch:
		if err := m.parse(buffer.ReadOnlyData()); err != nil {
			buffer.Free()
			return err
		}
		m.buffer = buffer
		return nil
	case proto.Message:
		defer buffer.Free()
		return proto.Unmarshal(buffer.ReadOnlyData(), m)
	default:
		buffer.Free()
		return fmt.Errorf("transport: cannot receive a %T: it is no protobuf message", v)
	}
}

func (b *rawBatch) size() int {
	size := protowire.SizeTag(batchFieldFrames) + protowire.SizeBytes(len(b.frames))
	if b.receipt {
		size += protowire.SizeTag(batchFieldReceipt) + protowire.SizeVarint(1)
	}
	return size
}

func (b *rawBatch) appendTo(dst []byte) []byte {
	dst = protowire.AppendTag(dst, batchFieldFrames, protowire.BytesType)
	dst = protowire.AppendBytes(dst, b.frames)
	if b.receipt {
		dst = protowire.AppendTag(dst, batchFieldReceipt, protowire.VarintType)
		dst = protowire.AppendVarint(dst, 1)
	}
	return dst
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
