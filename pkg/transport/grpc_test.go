package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/peerpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// book says where nodes listen, and who they are.
type book struct {
	mu         sync.Mutex // guards what follows
	addrs      map[kv.NodeID]string
	identities map[kv.NodeID]Identity
	dial       func(context.Context, string) (net.Conn, error)
}

func newBook() *book {
	b := &book{addrs: map[kv.NodeID]string{}, identities: map[kv.NodeID]Identity{}}
	for id := kv.NodeID(1); id <= 3; id++ {
		b.identities[id] = Identity{Node: id, Name: fmt.Sprintf("nö%d", id), Cluster: 1}
	}
	return b
}

func (b *book) resolve(id kv.NodeID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[id]
	return a, ok
}

func (b *book) self(id kv.NodeID) func() Identity {
	return func() Identity {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.identities[id]
	}
}

func (b *book) set(id kv.NodeID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

func (b *book) wire(t testing.TB, id kv.NodeID, cfg GRPCConfig) *GRPCWire {
	t.Helper()
	w, err := NewGRPCWire(cfg, GRPCDeps{Self: b.self(id), Resolve: b.resolve, Dial: b.dial})
	require.NoError(t, err)
	return w
}

// serve runs a peer server for the mux; the returned function kills it.
func (b *book) serve(t testing.TB, l net.Listener, s *station, cfg GRPCConfig) (kill func()) {
	t.Helper()
	server := grpc.NewServer(cfg.ServerOptions()...)
	RegisterPeerServer(server, b.self(s.self), s.Deliver)
	var once sync.Once
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	return func() {
		once.Do(func() {
			server.Stop()
			<-done
		})
	}
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	return l
}

// grpcPair runs muxes 1 and 2 over loopback. kill ends node 2's server; the address can then be used again.
func grpcPair(t testing.TB, cfg GRPCConfig) (b *book, one, two *station, kill func()) {
	t.Helper()
	b = newBook()
	one, two = newStation(t, b.wire(t, 1, cfg), 1), newStation(t, b.wire(t, 2, cfg), 2)
	for _, s := range []*station{one, two} {
		l := listen(t, "127.0.0.1:0")
		b.set(s.self, l.Addr().String())
		end := b.serve(t, l, s, cfg)
		t.Cleanup(end)
		if s == two {
			kill = end
		}
	}
	one.start(t)
	t.Cleanup(one.stop)
	two.start(t)
	t.Cleanup(two.stop)
	return b, one, two, kill
}

func TestGRPCCarriesSmallAndLargeTraffic(t *testing.T) {
	_, one, two, _ := grpcPair(t, DefaultGRPCConfig())
	two.node.onOpaque = func(b []byte) ([]byte, error) { return b, nil }
	for _, size := range []int{0, 1, 1000, 1 << 20, 15 << 20} {
		payload := make([]byte, size)
		for i := range payload {
			payload[i] = byte(i)
		}
		got, err := one.Meta(t.Context(), 2, payload)
		require.NoError(t, err)
		require.Equal(t, len(payload), len(got))
		require.Equal(t, string(payload), string(got))
	}
	for i := range 1000 {
		require.True(t, one.Send(2, []byte{byte(i), byte(i >> 8)}))
	}
	require.Eventually(t, func() bool { return len(two.node.rafts()) == 1000 }, 5*time.Second, time.Millisecond)
	for i, f := range two.node.rafts() {
		require.Equal(t, []byte{byte(i), byte(i >> 8)}, f)
	}
}

func TestGRPCBuffersAreNotReusedWhileInFlight(t *testing.T) {
	_, one, two, _ := grpcPair(t, DefaultGRPCConfig())
	two.node.onOpaque = func(b []byte) ([]byte, error) { return b, nil }
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				payload := make([]byte, 1+(i*577)%20_000)
				for j := range payload {
					payload[j] = byte(g*31 + i + j)
				}
				got, err := one.Meta(context.Background(), 2, payload)
				if err != nil || string(got) != string(payload) {
					t.Errorf("call %d of %d: %v, equal: %v", i, g, err, string(got) == string(payload))
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestGRPCServerIsKilledAndComesBackAtTheSameAddress(t *testing.T) {
	b, one, two, kill := grpcPair(t, DefaultGRPCConfig())
	require.NoError(t, (<-one.write(t, 2, "before", 5*time.Second)).err)
	two.node.hold = true
	waiting := one.write(t, 2, "waiting", time.Minute)
	require.Eventually(t, func() bool { return two.node.written() == 2 }, 5*time.Second, time.Millisecond)

	began := time.Now()
	kill()
	o := <-waiting
	requireUnknown(t, o.err, kv.CodeNotReady)
	require.Less(t, time.Since(began), 2*time.Second, "at once, not at the deadline")
	require.Eventually(t, func() bool {
		o := <-one.write(t, 2, "nobody", 5*time.Second)
		return errors.Is(o.err, ErrNotSent)
	}, 5*time.Second, 10*time.Millisecond)

	two.node.mu.Lock()
	two.node.hold = false
	two.node.mu.Unlock()
	addr, _ := b.resolve(2)
	defer b.serve(t, listen(t, addr), two, DefaultGRPCConfig())()
	began = time.Now()
	require.Eventually(t, func() bool {
		o := <-one.write(t, 2, "again", 5*time.Second)
		return o.err == nil
	}, 5*time.Second, 10*time.Millisecond)
	require.Less(t, time.Since(began), 3*time.Second)
}

func TestGRPCRefusesWhoDoesNotBelong(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*book)
		want  error
		text  string
	}{
		{"foreign cluster", func(b *book) { b.identities[2] = Identity{Node: 2, Name: "n2", Cluster: 0xbad} }, ErrForeignCluster, "0000000000000bad"},
		{"wrong node", func(b *book) { b.identities[2] = Identity{Node: 3, Name: "n3", Cluster: 1} }, ErrWrongNode, "n3 (node 3) is here instead of node 2"},
		{"itself", func(b *book) { b.identities[2] = Identity{Node: 1, Name: "n1", Cluster: 1} }, ErrWrongNode, "n1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBook()
			cfg := DefaultGRPCConfig()
			two := newStation(t, b.wire(t, 2, cfg), 2)
			l := listen(t, "127.0.0.1:0")
			b.set(2, l.Addr().String())
			defer b.serve(t, l, two, cfg)()
			b.mu.Lock()
			test.spoil(b)
			b.mu.Unlock()
			_, err := b.wire(t, 1, cfg).Connect(t.Context(), 2)
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, test.text)
		})
	}
}

func TestGRPCServerChecksForItself(t *testing.T) {
	self := Identity{Node: 2, Name: "n2", Cluster: 1}
	peer := func(i Identity, more ...string) metadata.MD {
		return metadata.Join(i.metadata(), metadata.Pairs(more...))
	}
	one := Identity{Node: 1, Name: "n1", Cluster: 1}
	got, err := admit(self, peer(one, mdTo, "2"))
	require.NoError(t, err)
	require.Equal(t, one, got)
	_, err = admit(self, peer(Identity{Node: 1, Cluster: 0}, mdTo, "2"))
	require.NoError(t, err, "a node may not know its cluster yet")

	for _, test := range []struct {
		md   metadata.MD
		want error
	}{
		{peer(Identity{Node: 1, Cluster: 5}, mdTo, "2"), ErrForeignCluster},
		{peer(one, mdTo, "3"), ErrWrongNode},
		{peer(self, mdTo, "2"), ErrWrongNode},
		{peer(one), ErrProtocol},
		{peer(one, mdTo, "x"), ErrProtocol},
		{metadata.MD{}, ErrProtocol},
		{metadata.Pairs(mdProtocol, "2"), ErrProtocol},
	} {
		_, err := admit(self, test.md)
		require.ErrorIs(t, err, test.want)
	}
}

func TestGRPCConnectSaysWhyItFailed(t *testing.T) {
	b := newBook()
	w := b.wire(t, 1, DefaultGRPCConfig())
	_, err := w.Connect(t.Context(), 2)
	require.ErrorContains(t, err, "no address")

	l := listen(t, "127.0.0.1:0")
	b.set(2, l.Addr().String())
	require.NoError(t, l.Close())
	_, err = w.Connect(t.Context(), 2)
	require.ErrorContains(t, err, "connection refused")

	// A server that is no peer.
	l = listen(t, "127.0.0.1:0")
	b.set(2, l.Addr().String())
	server := grpc.NewServer()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	_, err = w.Connect(t.Context(), 2)
	require.ErrorContains(t, err, "Unimplemented")
	server.Stop()
	<-done

	// Somebody who accepts and says nothing.
	l = listen(t, "127.0.0.1:0")
	defer l.Close()
	b.set(2, l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err = w.Connect(ctx, 2)
	require.Error(t, err)
	require.Less(t, time.Since(began), 2*time.Second)
}

// frozenPeer takes links and then nothing more.
type frozenPeer struct {
	peerpb.UnimplementedPeerServer
	self Identity
}

func (f frozenPeer) Deliver(stream grpc.BidiStreamingServer[peerpb.Batch, peerpb.Receipt]) error {
	if err := stream.SendHeader(f.self.metadata()); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func TestGRPCLinkToAFrozenPeerBreaks(t *testing.T) {
	b := newBook()
	cfg := DefaultGRPCConfig()
	cfg.ReceiptTimeout = 100 * time.Millisecond
	l := listen(t, "127.0.0.1:0")
	b.set(2, l.Addr().String())
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	peerpb.RegisterPeerServer(server, frozenPeer{self: b.identities[2]})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() {
		server.Stop()
		<-done
	}()
	link, err := b.wire(t, 1, cfg).Connect(t.Context(), 2)
	require.NoError(t, err)
	began := time.Now()
	for err == nil && time.Since(began) < 5*time.Second {
		err = link.Send(make([]byte, 1<<20)) // blocks once the windows are full
	}
	require.ErrorIs(t, err, errFrozen)
	<-link.Broken()
	require.ErrorIs(t, link.Err(), errFrozen)
	require.NoError(t, link.Close())
	require.NoError(t, link.Close())
}

func TestGRPCReceiptsKeepALiveLinkAlive(t *testing.T) {
	cfg := DefaultGRPCConfig()
	cfg.ReceiptEvery, cfg.ReceiptTimeout = time.Millisecond, 400*time.Millisecond
	_, one, two, _ := grpcPair(t, cfg)
	began := time.Now()
	for time.Since(began) < 700*time.Millisecond {
		require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
		time.Sleep(10 * time.Millisecond)
	}
	require.EqualValues(t, 1, one.metric(t, "links"))
	require.EqualValues(t, 1, one.metric(t, "connects_total"))
	require.Positive(t, two.node.written())
}

func TestGRPCServesOtherServicesBesidePeers(t *testing.T) {
	b := newBook()
	cfg := DefaultGRPCConfig()
	l := listen(t, "127.0.0.1:0")
	server := grpc.NewServer(cfg.ServerOptions()...)
	RegisterPeerServer(server, b.self(2), func(kv.NodeID, []byte) error { return nil })
	kvpb.RegisterKVServer(server, statusServer{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() {
		server.Stop()
		<-done
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	resp, err := kvpb.NewKVClient(conn).Status(t.Context(), &kvpb.StatusRequest{What: "ring"})
	require.NoError(t, err)
	require.Equal(t, "ring", string(resp.GetJson()))
}

type statusServer struct{ kvpb.UnimplementedKVServer }

func (statusServer) Status(_ context.Context, r *kvpb.StatusRequest) (*kvpb.StatusResponse, error) {
	return &kvpb.StatusResponse{Json: []byte(r.GetWhat())}, nil
}

func TestGRPCRunsInABubbleOverBufconn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook()
		cfg := DefaultGRPCConfig()
		listeners := map[string]*bufconn.Listener{"1": bufconn.Listen(1 << 20), "2": bufconn.Listen(1 << 20)}
		b.dial = func(ctx context.Context, addr string) (net.Conn, error) { return listeners[addr].DialContext(ctx) }
		b.set(1, "1")
		b.set(2, "2")
		one, two := newStation(t, b.wire(t, 1, cfg), 1), newStation(t, b.wire(t, 2, cfg), 2)
		defer b.serve(t, listeners["1"], one, cfg)()
		kill := b.serve(t, listeners["2"], two, cfg)
		one.start(t)
		defer one.stop()
		two.start(t)
		defer two.stop()
		require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
		time.Sleep(time.Minute)
		require.NoError(t, (<-one.write(t, 2, "k", time.Second)).err)
		require.EqualValues(t, 1, one.metric(t, "connects_total"), "an idle link stays")
		kill()
		time.Sleep(time.Second)
		requireNotSent(t, (<-one.write(t, 2, "k", time.Second)).err, kv.CodeNotReady)
	})
}
