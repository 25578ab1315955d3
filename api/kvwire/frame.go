package kvwire

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"

	"github.com/caprockdb/caprock/api/kvpb"
)

// Frame is a message whose encoding is done elsewhere: gRPC's proto codec sends Data as it is, and receives into it.
//
// It takes the road that the protobuf runtime offers to message implementations of their own (the fast-path methods). A codec
// of our own for gRPC would do the same, but a codec belongs to a whole server, and other services live there too.
type Frame struct {
	// The reflection of an empty message, for everything but the fast path.
	protoreflect.Message
	// Data is the encoded message. A received frame's Data is newly allocated and belongs to the receiver.
	Data []byte

	methods protoiface.Methods
}

// NewFrame returns an empty frame.
func NewFrame() *Frame {
	f := &Frame{Message: (&kvpb.OperationBatch{}).ProtoReflect()}
	f.methods = protoiface.Methods{
		Flags:            protoiface.SupportMarshalDeterministic | protoiface.SupportUnmarshalDiscardUnknown,
		Size:             f.size,
		Marshal:          f.marshal,
		Unmarshal:        f.unmarshal,
		CheckInitialized: f.checkInitialized,
	}
	return f
}

var _ proto.Message = (*Frame)(nil)

// Reset drops the data. It never reuses its memory, because whoever received it may still refer to it.
func (f *Frame) Reset() { f.Data = nil }

// ProtoReflect implements proto.Message.
func (f *Frame) ProtoReflect() protoreflect.Message { return f }

// Interface implements protoreflect.Message.
func (f *Frame) Interface() protoreflect.ProtoMessage { return f }

// ProtoMethods implements protoreflect.Message.
func (f *Frame) ProtoMethods() *protoiface.Methods { return &f.methods }

func (f *Frame) size(protoiface.SizeInput) protoiface.SizeOutput {
	return protoiface.SizeOutput{Size: len(f.Data)}
}

func (f *Frame) marshal(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
	return protoiface.MarshalOutput{Buf: append(in.Buf, f.Data...)}, nil
}

func (f *Frame) unmarshal(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
	f.Data = append([]byte(nil), in.Buf...) // in.Buf goes back to gRPC's pool
	return protoiface.UnmarshalOutput{Flags: protoiface.UnmarshalInitialized}, nil
}

func (f *Frame) checkInitialized(protoiface.CheckInitializedInput) (protoiface.CheckInitializedOutput, error) {
	return protoiface.CheckInitializedOutput{}, nil
}
