package api

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// healthWatchEvery is how often a watched health is looked at again.
const healthWatchEvery = time.Second

// health answers gRPC's health protocol. The empty service and the KV service are healthy when every level can be served; beside
// them each level is a service by its name. It asks the backend each time, where the health server of the gRPC library would
// have to be told of every change.
type health struct {
	healthpb.UnimplementedHealthServer

	g *GRPC
}

func registerHealth(s *grpc.Server, g *GRPC) { healthpb.RegisterHealthServer(s, &health{g: g}) }

// Check implements the health protocol.
func (h *health) Check(_ context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	answer := h.status(in.GetService())
	if answer == healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Errorf(codes.NotFound, "unknown service %q", in.GetService())
	}
	return &healthpb.HealthCheckResponse{Status: answer}, nil
}

// Watch implements the health protocol.
func (h *health) Watch(in *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	ticker := time.NewTicker(healthWatchEvery)
	defer ticker.Stop()
	told := healthpb.HealthCheckResponse_UNKNOWN
	for {
		if now := h.status(in.GetService()); now != told {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-h.g.drain:
			// The stream must end, or a graceful stop would wait for it for ever.
			return stream.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING})
		case <-ticker.C:
		}
	}
}

func (h *health) status(service string) healthpb.HealthCheckResponse_ServingStatus {
	level := kv.LevelUnset
	if service != "" && service != kvpb.KV_ServiceDesc.ServiceName {
		var err error
		if level, err = kv.ParseLevel(service); err != nil {
			return healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		}
	}
	if h.g.isDraining() || h.g.deps.Backend.Ready(level) != nil {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}
