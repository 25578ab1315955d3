package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// StatusContext returns one of the documents by which a node describes the cluster: "status", "ring", "nodes" or
// "partitions". It asks the endpoints one after another until one answers.
func (c *Client) StatusContext(ctx context.Context, document string) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	var last *kv.Error
	start := c.first()
	for i := range c.conns {
		conn := c.conns[(start+i)%len(c.conns)]
		answer, err := conn.status(ctx, document)
		if err == nil {
			return answer, nil
		}
		last = err
		if ctx.Err() != nil || !err.Retryable {
			break
		}
	}
	return nil, last
}

// status asks this endpoint.
func (c *conn) status(ctx context.Context, document string) (json.RawMessage, *kv.Error) {
	ctx, cancel := context.WithTimeout(ctx, c.client.cfg.ConnectTimeout)
	defer cancel()
	response, err := kvpb.NewKVClient(c.cc).Status(ctx, &kvpb.StatusRequest{What: document})
	if err != nil {
		return nil, errorOf(err, c.endpoint)
	}
	return response.GetJson(), nil
}

// errorOf returns what a unary call's failure means. The server's own account is a detail of the status; without one the
// request failed on its way.
func errorOf(err error, endpoint string) *kv.Error {
	s := status.Convert(err)
	for _, detail := range s.Details() {
		e, ok := detail.(*kvpb.Error)
		if !ok {
			continue
		}
		out := kv.Errorf(kv.Code(e.GetCode()), "%s", e.GetDetail())
		out.Retryable = e.GetRetryable()
		out.RetryAfter = time.Duration(e.GetRetryAfterMs()) * time.Millisecond
		out.Leader = e.GetLeader()
		out.Staleness = time.Duration(e.GetStalenessMs()) * time.Millisecond
		return out
	}
	code := kv.CodeNotReady
	switch s.Code() {
	case codes.DeadlineExceeded, codes.Canceled:
		code = kv.CodeDeadlineExceeded
	case codes.Unimplemented, codes.Internal, codes.Unknown:
		code = kv.CodeInternal
	}
	return kv.Errorf(code, "%s: %w", endpoint, statusError(err))
}

// statusError strips gRPC's wrapping from an error that people will read.
func statusError(err error) error {
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return fmt.Errorf("%s", s.Message())
	}
	return err
}
