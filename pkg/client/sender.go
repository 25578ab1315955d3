package client

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Transport settings. Fixed windows spare the pings by which gRPC estimates the bandwidth.
const (
	streamWindowBytes = 4 << 20
	connWindowBytes   = 8 << 20
	bufferBytes       = 64 << 10
	// receiveBytesMax bounds one message of results: a result with 64 siblings of 1 MiB fits.
	receiveBytesMax = 128 << 20
	// A server that answers no ping within keepaliveTimeout is dead.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

func dial(endpoint string, cfg Config, extra []grpc.DialOption) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(receiveBytesMax), grpc.MaxCallSendMsgSize(2*operationBytesMax)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: cfg.BackoffMin, Multiplier: 2, Jitter: 0.2, MaxDelay: cfg.BackoffMax},
			MinConnectTimeout: cfg.ConnectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDisableServiceConfig(),
	}
	return grpc.NewClient(endpoint, append(options, extra...)...)
}

// open opens a stream and waits for the server's header: gRPC opens a stream without a word from the server, so that only
// the header tells a node that serves from one that hangs.
func (c *conn) open(ctx context.Context, cancel context.CancelFunc) (stream grpc.ClientStream, err error) {
	timeout := time.AfterFunc(c.client.cfg.ConnectTimeout, cancel)
	defer func() {
		if !timeout.Stop() {
			stream, err = nil, fmt.Errorf("no answer within %s", c.client.cfg.ConnectTimeout)
		}
	}()
	stream, err = kvpb.NewKVClient(c.cc).Stream(ctx)
	if err != nil {
		return nil, statusError(err)
	}
	header, err := stream.Header()
	if err == nil && header == nil {
		// The stream ended without a header; its status tells why.
		err = stream.RecvMsg(kvwire.NewFrame())
	}
	if err != nil {
		return nil, statusError(err)
	}
	c.client.routes.learn(c.index, header)
	return stream, nil
}

// outgoing is what the sender sends as one message.
type outgoing struct {
	calls   []*call
	ids     []uint64
	expired []*call // left out, because their deadline has passed
	frame   *kvwire.Frame
}

// send sends what is queued until the stream ends, or the server drains.
func (c *conn) send(ctx context.Context, stream grpc.ClientStream) error {
	out := outgoing{frame: kvwire.NewFrame()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		for {
			// Let whoever is about to queue an operation do so first. On a busy client this makes messages several times larger
			// and costs nothing; on an idle one it costs a tenth of a microsecond.
			runtime.Gosched()
			draining := c.takeBatch(&out)
			for _, op := range out.expired {
				op.expire()
			}
			if draining {
				return stream.CloseSend()
			}
			if len(out.calls)+len(out.expired) == 0 {
				break
			}
			if len(out.calls) == 0 {
				continue
			}
			if err := c.sendBatch(stream, &out); err != nil {
				return err
			}
		}
	}
}

// takeBatch moves operations from the queue to out and the table, as many as fit in a message.
func (c *conn) takeBatch(out *outgoing) (draining bool) {
	clear(out.calls)
	clear(out.expired)
	out.calls, out.ids, out.expired = out.calls[:0], out.ids[:0], out.expired[:0]
	now, bytes, taken := time.Now(), 0, 0
	cfg := &c.client.cfg
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range c.queue {
		size := op.op.Size()
		if len(out.calls) > 0 && (len(out.calls) == cfg.BatchOpsMax || bytes+size > cfg.BatchBytesMax) {
			break
		}
		taken++
		if !now.Before(op.deadline) {
			out.expired = append(out.expired, op)
			continue
		}
		op.endpoint.Store(int32(c.index)) // before anybody can find the operation sent
		if !op.move(queued, sent) {
			continue // its caller gave up
		}
		bytes += size
		op.attempts++
		op.sentAt = now
		out.calls = append(out.calls, op)
		out.ids = append(out.ids, c.table.add(op))
	}
	rest := copy(c.queue, c.queue[taken:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	return c.draining
}

// sendBatch encodes and sends one message.
func (c *conn) sendBatch(stream grpc.ClientStream, out *outgoing) error {
	now := time.Now()
	out.frame.Data = out.frame.Data[:0]
	for i, op := range out.calls {
		wire := op.op
		wire.ID = out.ids[i]
		wire.Request.ID = op.id()
		if op.write() && op.unsure.Load() {
			// An earlier attempt may have been applied at the stronger level, where its id lets it be repeated.
			wire.Request.Fallback = kv.LevelUnset
		}
		// The server gives up within the last millisecond before the client does. 0 would mean its default.
		wire.Timeout = max(op.deadline.Sub(now).Truncate(time.Millisecond), time.Millisecond)
		out.frame.Data = kvwire.AppendOperation(out.frame.Data, &wire)
	}
	err := stream.SendMsg(out.frame)
	if cap(out.frame.Data) > 2*c.client.cfg.BatchBytesMax {
		out.frame.Data = nil // one huge operation must not keep its memory for ever
	}
	return err
}
