package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// GRPCConfig holds the limits of the public gRPC interface.
type GRPCConfig struct {
	// Limits bounds keys and values, in bytes.
	Limits kv.Limits
	// RequestTimeout is the deadline of an operation that names none, RequestTimeoutMax the longest it may ask for.
	RequestTimeout    time.Duration
	RequestTimeoutMax time.Duration
	// StreamOpsMax and StreamBytesMax bound what is under way on one stream: operations that were accepted, and their results
	// until they are sent. Beyond them the stream is not read, so that the client is slowed down by flow control.
	StreamOpsMax   int
	StreamBytesMax int
	// ResultBytesMax is about how much one message of results holds. A single larger result still travels, alone.
	ResultBytesMax int
	// MessageBytesMax bounds a received message. It must exceed what a client batches plus the largest operation.
	MessageBytesMax int
	// IdleWorkersMax is how many goroutines a stream keeps for its next operations. More are started as they are needed.
	IdleWorkersMax int
}

// DefaultGRPCConfig returns the limits of a production node.
func DefaultGRPCConfig() GRPCConfig {
	return GRPCConfig{
		Limits:            kv.DefaultLimits(),
		RequestTimeout:    kv.RequestTimeout,
		RequestTimeoutMax: kv.RequestTimeoutMax,
		StreamOpsMax:      4096,
		StreamBytesMax:    16 << 20,
		ResultBytesMax:    4 << 20,
		MessageBytesMax:   32 << 20,
		IdleWorkersMax:    256,
	}
}

// Validate reports the first setting that makes no sense.
func (c GRPCConfig) Validate() error {
	switch {
	case c.Limits.KeyBytesMax < 1 || c.Limits.ValueBytesMax < 1:
		return fmt.Errorf("api: limits of %d key bytes and %d value bytes: both must be at least 1",
			c.Limits.KeyBytesMax, c.Limits.ValueBytesMax)
	case c.RequestTimeout <= 0 || c.RequestTimeout > c.RequestTimeoutMax:
		return fmt.Errorf("api: request timeout %v: it must be above 0 and at most the maximum of %v",
			c.RequestTimeout, c.RequestTimeoutMax)
	case c.StreamOpsMax < 1 || c.StreamBytesMax < 1 || c.ResultBytesMax < 1 || c.IdleWorkersMax < 0:
		return errors.New("api: the limits of a gRPC stream must be positive")
	case c.MessageBytesMax < c.Limits.KeyBytesMax+c.Limits.ValueBytesMax+batchSlackBytes:
		return fmt.Errorf("api: gRPC messages of at most %d bytes: a value of %d bytes in a client's batch needs %d more",
			c.MessageBytesMax, c.Limits.ValueBytesMax, c.Limits.KeyBytesMax+batchSlackBytes)
	}
	return nil
}

// Transport settings.
const (
	// batchSlackBytes is what a client may put in a message beside its largest operation.
	batchSlackBytes = 8 << 20
	// Fixed windows spare the pings by which gRPC estimates the bandwidth.
	streamWindowBytes = 4 << 20
	connWindowBytes   = 8 << 20
	grpcBufferBytes   = 64 << 10
	// The Go client pings every 10 s to notice a dead node; gRPC would hang up on it by default.
	keepaliveMin = 5 * time.Second
	// An idle client that vanished without a word is noticed after this.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// connStreamsMax bounds the calls and streams of one connection.
	connStreamsMax = 1024
)

// GRPCServerOptions returns the options that a server for RegisterGRPC needs. Others may be added.
func GRPCServerOptions(cfg GRPCConfig) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(cfg.MessageBytesMax),
		grpc.MaxConcurrentStreams(connStreamsMax),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		grpc.ReadBufferSize(grpcBufferBytes),
		grpc.WriteBufferSize(grpcBufferBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WaitForHandlers(true),
	}
}

// GRPC is the public gRPC front. Its streams end with the server that it is registered with.
type GRPC struct {
	kvpb.UnimplementedKVServer

	cfg   GRPCConfig
	deps  Deps
	exec  *executor
	drain chan struct{} // closed when the node starts to shut down

	mu       sync.Mutex // guards what follows
	draining bool
	streams  int
	ended    chan struct{} // closed when streams falls to 0 while draining
}

// RegisterGRPC registers the public services (KV, health and reflection) with a server made with GRPCServerOptions.
func RegisterGRPC(s *grpc.Server, cfg GRPCConfig, deps Deps) (*GRPC, error) {
	exec, err := executorOf(cfg.Validate(), deps, cfg.Limits)
	if err != nil {
		return nil, err
	}
	g := &GRPC{cfg: cfg, deps: deps, exec: exec, drain: make(chan struct{}), ended: make(chan struct{})}
	kvpb.RegisterKVServer(s, g)
	registerHealth(s, g)
	reflection.Register(s)
	return g, nil
}

// Drain refuses new operations and asks the clients of all streams to go elsewhere. It returns once every stream has answered what
// it had accepted and ended, or with ctx's error. The server is to be stopped afterwards, gracefully for unary calls.
func (g *GRPC) Drain(ctx context.Context) error {
	g.mu.Lock()
	if !g.draining {
		g.draining = true
		close(g.drain)
		if g.streams == 0 {
			close(g.ended)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *GRPC) isDraining() bool {
	select {
	case <-g.drain:
		return true
	default:
		return false
	}
}

// enter counts a stream, and refuses it when the node is shutting down.
func (g *GRPC) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.draining {
		g.streams++
	}
	return !g.draining
}

func (g *GRPC) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams--; g.streams == 0 && g.draining {
		close(g.ended)
	}
}

// shuttingDown is the answer to operations that come after Drain.
func shuttingDown() *kv.Error { return kv.Errorf(kv.CodeNotReady, "the node is shutting down") }

// Get implements the unary read.
func (g *GRPC) Get(ctx context.Context, op *kvpb.Operation) (*kvpb.Result, error) {
	return g.unary(ctx, op, kv.OpGet)
}

// Put implements the unary write.
func (g *GRPC) Put(ctx context.Context, op *kvpb.Operation) (*kvpb.Result, error) {
	return g.unary(ctx, op, kv.OpPut)
}

// Delete implements the unary delete.
func (g *GRPC) Delete(ctx context.Context, op *kvpb.Operation) (*kvpb.Result, error) {
	return g.unary(ctx, op, kv.OpDelete)
}

// unary runs one operation. It goes through the stream's codec, so that an operation means the same on both ways; next to what a
// unary call costs, encoding it once more is nothing.
func (g *GRPC) unary(ctx context.Context, in *kvpb.Operation, kind kv.Op) (*kvpb.Result, error) {
	var op kvwire.Operation
	raw, err := proto.Marshal(in)
	if err == nil {
		err = kvwire.DecodeOperation(raw, &op)
	}
	if err != nil {
		return nil, statusOf(kv.Errorf(kv.CodeBadRequest, "the operation cannot be read: %w", err))
	}
	if op.Request.Op == 0 && op.Strange == 0 {
		op.Request.Op = kind
	}
	if op.Request.Op != kind && op.Strange == 0 {
		g.exec.refuse(op.Request.Level, kind)
		return nil, statusOf(kv.Errorf(kv.CodeBadRequest, "the operation is a %s, the method a %s", op.Request.Op, kind))
	}
	if failure := g.accept(&op); failure != nil {
		g.exec.refuse(op.Request.Level, kind)
		return nil, statusOf(failure)
	}
	ctx, cancel := context.WithTimeout(ctx, op.Timeout)
	defer cancel()
	response, failure := g.exec.execute(ctx, &op.Request)
	if failure != nil {
		g.note(failure)
		return nil, statusOf(failure)
	}
	var wire kvwire.Result
	g.fillResult(&wire, kind, &response)
	out := &kvpb.Result{}
	if err := proto.Unmarshal(kvwire.AppendBareResult(nil, &wire), out); err != nil {
		return nil, statusOf(kv.Errorf(kv.CodeInternal, "the result cannot be encoded: %w", err).WithOutcome(response.Outcome))
	}
	return out, nil
}

// note logs a failure that only whoever runs the node can do something about.
func (g *GRPC) note(failure *kv.Error) {
	if failure.Code == kv.CodeInternal {
		g.deps.Logger.Error("operation failed", slog.String("front", "grpc"), slog.String("error", failure.Error()))
	}
}

// accept checks what only this front can check of an operation, and fills in its timeout.
func (g *GRPC) accept(op *kvwire.Operation) *kv.Error {
	switch {
	case g.isDraining():
		return shuttingDown()
	case op.Strange != 0:
		return kv.Errorf(kv.CodeBadRequest, "field %d of the operation, or its value, is not known to this node", op.Strange)
	case op.Request.Op == 0:
		return kv.Errorf(kv.CodeBadRequest, "the operation does not say what to do")
	case op.Timeout > g.cfg.RequestTimeoutMax:
		return kv.Errorf(kv.CodeBadRequest, "timeout_ms=%d is out of range: it is at most %d",
			op.Timeout.Milliseconds(), g.cfg.RequestTimeoutMax.Milliseconds())
	case op.Timeout == 0:
		op.Timeout = g.cfg.RequestTimeout
	}
	return nil
}

// fillResult spells a response as it travels. The result's slices alias the response's.
func (g *GRPC) fillResult(out *kvwire.Result, kind kv.Op, r *kv.Response) {
	*out = kvwire.Result{
		ID: out.ID, Replicas: out.Replicas[:0],
		Found: r.Found, Settled: r.Settled, HasOutcome: kind.IsWrite(), Outcome: r.Outcome, Level: r.Level, Acks: r.Acks, Hinted: r.Hinted,
		Concurrent: r.Concurrent, Version: r.Version, Value: r.Value, Context: r.Context, Session: r.Session, StalenessMillis: r.StalenessMillis(),
		Coordinator: g.deps.Backend.NodeName(r.Coordinator),
	}
	if !r.Timestamp.IsZero() {
		out.TimestampMillis = r.Timestamp.UnixMilli()
	}
	for _, id := range r.Replicas {
		out.Replicas = append(out.Replicas, g.deps.Backend.NodeName(id))
	}
	for _, s := range r.Siblings {
		out.Siblings = append(out.Siblings, kvwire.Sibling{
			Value: s.Value, Deleted: s.Deleted, TimestampMillis: s.Timestamp.UnixMilli(), Node: g.deps.Backend.NodeName(s.Node),
		})
	}
}

// Status implements the documents of /admin.
func (g *GRPC) Status(ctx context.Context, in *kvpb.StatusRequest) (*kvpb.StatusResponse, error) {
	name := in.GetWhat()
	switch name {
	case "":
		name = DocStatus
	case DocStatus, DocRing, DocNodes, DocPartitions:
	default:
		if number, isCheck := strings.CutPrefix(name, DocCheck+"/"); isCheck && isDigits(number) {
			break
		}
		return nil, statusOf(kv.Errorf(kv.CodeBadRequest, "what=%q names no document; the documents are %s, %s, %s, %s and %s/N",
			name, DocStatus, DocRing, DocNodes, DocPartitions, DocCheck))
	}
	document, err := g.deps.Backend.Document(ctx, name)
	if err != nil {
		return nil, statusOf(classify(kv.OpGet, err))
	}
	if document == nil {
		return nil, statusOf(kv.Errorf(kv.CodeBadRequest, "what=%q: there is no such partition", name))
	}
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, statusOf(kv.Errorf(kv.CodeInternal, "the document cannot be encoded: %w", err))
	}
	return &kvpb.StatusResponse{Json: raw}, nil
}
