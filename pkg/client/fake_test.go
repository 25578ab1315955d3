package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// fakeNode is a node that answers as its script says. It uses the generated code, so that the client's own codec is checked
// against it.
type fakeNode struct {
	kvpb.UnimplementedKVServer

	name string
	// answer returns an operation's result; nil means no answer, ever. It runs for one operation after another.
	answer func(*kvpb.Operation) *kvpb.Result
	// header is what its streams open with.
	header metadata.MD
	// mute nodes accept streams and say nothing at all, not even the header.
	mute bool

	mu         sync.Mutex // guards what follows
	listener   *bufconn.Listener
	server     *grpc.Server
	stopped    chan struct{}
	operations []*kvpb.Operation
	batches    int
	streams    int
	drain      chan struct{}
}

// cluster is some fake nodes and the way to reach them.
type cluster struct {
	t     *testing.T
	nodes []*fakeNode
}

func newCluster(t *testing.T, count int) *cluster {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c := &cluster{t: t}
	for i := range count {
		n := &fakeNode{name: fmt.Sprintf("n%d", i+1)}
		n.answer = n.ok
		c.nodes = append(c.nodes, n)
		n.start()
		t.Cleanup(n.stop)
	}
	return c
}

func (n *fakeNode) ok(op *kvpb.Operation) *kvpb.Result {
	return &kvpb.Result{
		Found: true, Value: append([]byte("value of "), op.GetKey()...), Version: 7, Context: []byte("token"), Level: kvpb.Level_LEVEL_STRONG,
		Acks: 2, Settled: true, Outcome: kvpb.Outcome_OUTCOME_APPLIED, TimestampMs: 1795253370123,
		Coordinator: n.name, Replicas: []string{"n1", "n3"},
	}
}

func refusal(code kv.Code, outcome kvpb.Outcome) *kvpb.Result {
	return &kvpb.Result{Error: &kvpb.Error{Code: string(code), Detail: "as scripted", Outcome: outcome, Retryable: true}}
}

func (n *fakeNode) start() {
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	kvpb.RegisterKVServer(server, n)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = server.Serve(listener)
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listener, n.server, n.stopped, n.drain = listener, server, stopped, make(chan struct{})
}

// stop cuts every connection, as kill -9 does.
func (n *fakeNode) stop() {
	n.mu.Lock()
	server, listener, stopped := n.server, n.listener, n.stopped
	n.server, n.listener = nil, nil
	n.mu.Unlock()
	if server == nil {
		return
	}
	server.Stop()
	_ = listener.Close()
	<-stopped
}

func (n *fakeNode) dial(ctx context.Context) (net.Conn, error) {
	n.mu.Lock()
	listener := n.listener
	n.mu.Unlock()
	if listener == nil {
		return nil, fmt.Errorf("%s: connection refused", n.name)
	}
	return listener.DialContext(ctx)
}

func (n *fakeNode) Status(context.Context, *kvpb.StatusRequest) (*kvpb.StatusResponse, error) {
	return &kvpb.StatusResponse{Json: []byte(`{"name":"` + n.name + `"}`)}, nil
}

func (n *fakeNode) Stream(stream grpc.BidiStreamingServer[kvpb.OperationBatch, kvpb.ResultBatch]) error {
	if n.mute {
		<-stream.Context().Done()
		return nil
	}
	if err := stream.SendHeader(n.header); err != nil {
		return err
	}
	n.mu.Lock()
	n.streams++
	drain := n.drain
	n.mu.Unlock()
	var sending sync.Mutex
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-drain:
			sending.Lock()
			defer sending.Unlock()
			_ = stream.Send(&kvpb.ResultBatch{Draining: true})
		case <-ended:
		}
	}()
	for {
		batch, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		n.mu.Lock()
		n.batches++
		n.operations = append(n.operations, batch.GetOperations()...)
		answer := n.answer
		n.mu.Unlock()
		out := &kvpb.ResultBatch{}
		for _, op := range batch.GetOperations() {
			if r := answer(op); r != nil {
				r.Id = op.GetId()
				out.Results = append(out.Results, r)
			}
		}
		if len(out.GetResults()) == 0 {
			continue
		}
		sending.Lock()
		err = stream.Send(out)
		sending.Unlock()
		if err != nil {
			return err
		}
	}
}

// seen returns how many operations and batches have arrived.
func (n *fakeNode) seen() (operations, batches int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.operations), n.batches
}

func (c *cluster) config() Config {
	cfg := DefaultConfig(nil)
	for _, n := range c.nodes {
		cfg.Endpoints = append(cfg.Endpoints, "passthrough:///"+n.name)
	}
	cfg.TurnEvery = 0 // so that what goes where is certain
	cfg.BackoffMin, cfg.BackoffMax, cfg.ConnectTimeout = time.Millisecond, 20*time.Millisecond, time.Second
	cfg.RetryMin, cfg.RetryMax = time.Millisecond, 5*time.Millisecond
	return cfg
}

// client returns a client of the cluster that has reached every node that can be reached.
func (c *cluster) client(change ...func(*Config)) *Client {
	c.t.Helper()
	cfg := c.config()
	for _, f := range change {
		f(&cfg)
	}
	dialer := func(ctx context.Context, name string) (net.Conn, error) {
		for _, n := range c.nodes {
			if n.name == name {
				return n.dial(ctx)
			}
		}
		return nil, fmt.Errorf("no node %s", name)
	}
	out, err := New(cfg, Deps{DialOptions: []grpc.DialOption{grpc.WithContextDialer(dialer)}})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { require.NoError(c.t, out.Close()) })
	for i, n := range c.nodes {
		if n.server != nil && !n.mute {
			require.Eventually(c.t, out.conns[i].up.Load, 5*time.Second, time.Millisecond)
		}
	}
	return out
}
