package transport

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/peerpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// ServerOptions returns the options that a gRPC server needs which serves peers. It may serve other protobuf services
// beside them. A message may then be as large as the largest batch: services with a lower limit enforce it themselves.
func (c GRPCConfig) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(c.MessageBytesMax),
		grpc.InitialWindowSize(c.StreamWindowBytes),
		grpc.InitialConnWindowSize(c.ConnWindowBytes),
		grpc.ReadBufferSize(c.BufferBytes),
		grpc.WriteBufferSize(c.BufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: c.KeepaliveEvery, Timeout: c.KeepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		// A server that was stopped has no handler left that could still deliver something.
		grpc.WaitForHandlers(true),
	}
}

// RegisterPeerServer has the server, made with ServerOptions, take what peers send. self is asked for each new link;
// deliver gets every batch, which it does not retain, and an error from it closes the link. Links of peers last as long
// as the peers: the server ends with Stop, not with GracefulStop, which would wait for them.
func RegisterPeerServer(s grpc.ServiceRegistrar, self func() Identity, deliver func(from kv.NodeID, batch []byte) error) {
	peerpb.RegisterPeerServer(s, &peerServer{self: self, deliver: deliver})
}

type peerServer struct {
	peerpb.UnimplementedPeerServer
	self    func() Identity
	deliver func(from kv.NodeID, batch []byte) error
}

// Deliver implements peerpb.PeerServer.
func (s *peerServer) Deliver(stream grpc.BidiStreamingServer[peerpb.Batch, peerpb.Receipt]) error {
	self := s.self()
	// The caller learns whom it reached even if it is then turned away: that makes its error a clear one.
	if err := stream.SendHeader(self.metadata()); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	peer, err := admit(self, md)
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	for {
		var batch rawBatch
		if err := stream.RecvMsg(&batch); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		err := s.deliver(peer.Node, batch.frames)
		receipt := batch.receipt
		batch.free()
		switch {
		case errors.Is(err, ErrClosed):
			return status.Error(codes.Unavailable, err.Error())
		case err != nil:
			return status.Error(codes.FailedPrecondition, err.Error())
		case receipt:
			if err := stream.Send(&peerpb.Receipt{}); err != nil {
				return err
			}
		}
	}
}

// admit checks that the caller belongs to this cluster and means this node.
func admit(self Identity, md metadata.MD) (Identity, error) {
	peer, err := introduced(md)
	if err != nil {
		return Identity{}, err
	}
	if err := self.belongs(peer); err != nil {
		return Identity{}, err
	}
	to, err := numberIn(md, mdTo, 10)
	if err != nil {
		return Identity{}, err
	}
	if kv.NodeID(to) != self.Node {
		return Identity{}, fmt.Errorf("%w: %v looks for node %s here; this is %v", ErrWrongNode, peer, strconv.FormatUint(to, 10), self)
	}
	return peer, nil
}
