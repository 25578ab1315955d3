package api

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// scriptedNode is a Backend whose operations run at once, as the script says.
type scriptedNode struct {
	*fakeNode
	run func(ctx context.Context, r *kv.Request) (kv.Response, error)
}

func (n *scriptedNode) Execute(ctx context.Context, r *kv.Request) (kv.Response, error) {
	return n.run(ctx, r)
}

func (n *scriptedNode) ExecuteEach(ctx context.Context, rs []kv.Request) []kv.Answer {
	return executeEach(ctx, rs, n.run)
}

// grpcFront is a served gRPC front and a connection to it.
type grpcFront struct {
	t      *testing.T
	g      *GRPC
	server *grpc.Server
	conn   *grpc.ClientConn
	kv     kvpb.KVClient
	deps   Deps
}

func newGRPCFront(t *testing.T, node Backend, change ...func(*GRPCConfig)) *grpcFront {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	cfg := DefaultGRPCConfig()
	for _, f := range change {
		f(&cfg)
	}
	front := &grpcFront{t: t, server: grpc.NewServer(GRPCServerOptions(cfg)...), deps: testDeps(node)}
	var err error
	front.g, err = RegisterGRPC(front.server, cfg, front.deps)
	require.NoError(t, err)
	listener := bufconn.Listen(1 << 20)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = front.server.Serve(listener)
	}()
	front.conn, err = grpc.NewClient("passthrough:///node",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	require.NoError(t, err)
	front.kv = kvpb.NewKVClient(front.conn)
	t.Cleanup(func() {
		_ = front.conn.Close()
		front.server.Stop()
		<-served
	})
	return front
}

// counted returns how many operations the metrics have counted.
func (f *grpcFront) counted(level, op, result string) float64 {
	f.t.Helper()
	m, err := newOperationMetrics(f.deps.Registerer)
	require.NoError(f.t, err)
	for l := range levelCount {
		for o := int(kv.OpGet); o < opCount; o++ {
			for r := range resultCount {
				if levelLabel(kv.Level(l)) == level && kv.Op(o).String() == op && resultNames[r] == result {
					return testutil.ToFloat64(m.total[l][o][r])
				}
			}
		}
	}
	f.t.Fatalf("no series %s %s %s", level, op, result)
	return 0
}

// testStream is a client's side of a stream.
type testStream struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[kvpb.OperationBatch, kvpb.ResultBatch]
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows
	results  map[uint64]*kvpb.Result
	batches  []int
	draining bool
	err      error
	ended    chan struct{}
}

// stream opens a stream and collects its results. A paused one is not read until resume is called.
func (f *grpcFront) stream() *testStream {
	s := f.pausedStream()
	s.resume()
	return s
}

func (f *grpcFront) pausedStream() *testStream {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	stream, err := f.kv.Stream(ctx)
	require.NoError(f.t, err)
	_, err = stream.Header() // arrives before anything was sent
	require.NoError(f.t, err)
	s := &testStream{t: f.t, stream: stream, cancel: cancel, results: map[uint64]*kvpb.Result{}, ended: make(chan struct{})}
	f.t.Cleanup(cancel)
	return s
}

func (s *testStream) resume() {
	go func() {
		defer close(s.ended)
		for {
			batch, err := s.stream.Recv()
			s.mu.Lock()
			if err != nil {
				s.err = err
				s.mu.Unlock()
				return
			}
			s.draining = s.draining || batch.GetDraining()
			if n := len(batch.GetResults()); n > 0 {
				s.batches = append(s.batches, n)
			}
			for _, r := range batch.GetResults() {
				s.results[r.GetId()] = r
			}
			s.mu.Unlock()
		}
	}()
}

func (s *testStream) send(operations ...*kvpb.Operation) {
	s.t.Helper()
	require.NoError(s.t, s.stream.Send(&kvpb.OperationBatch{Operations: operations}))
}

func (s *testStream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.results)
}

// await returns the result of the operation once it has come.
func (s *testStream) await(id uint64) *kvpb.Result {
	s.t.Helper()
	var out *kvpb.Result
	require.Eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		out = s.results[id]
		return out != nil
	}, 10*time.Second, time.Millisecond)
	return out
}

func putOp(id uint64, key, value string) *kvpb.Operation {
	return &kvpb.Operation{Id: id, Op: kvpb.Op_OP_PUT, Key: []byte(key), Value: []byte(value)}
}

func getOp(id uint64, key string) *kvpb.Operation {
	return &kvpb.Operation{Id: id, Op: kvpb.Op_OP_GET, Key: []byte(key)}
}
