package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/caprockdb/caprock/api/peerpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// GRPCConfig sizes the gRPC wire. Both ends use the same.
type GRPCConfig struct {
	// MessageBytesMax bounds one received message. Default 17 MiB + 64 KiB: a batch that was all but full took the
	// largest frame.
	MessageBytesMax int
	// StreamWindowBytes and ConnWindowBytes are HTTP/2's flow-control windows: what may be under way without the receiver
	// having read it. Defaults 4 MiB and 8 MiB. gRPC's own 64 KiB would cost a round trip every 64 KiB.
	StreamWindowBytes int32
	ConnWindowBytes   int32
	// BufferBytes is what is read or written with one system call. Default 64 KiB.
	BufferBytes int
	// KeepaliveEvery and KeepaliveTimeout find a network that swallows everything. Defaults 10 s, gRPC's minimum, and
	// 2 s. On Linux the timeout also bounds how long sent data may go unacknowledged, so that with traffic a dead
	// machine is noticed after it.
	KeepaliveEvery   time.Duration
	KeepaliveTimeout time.Duration
	// ReceiptEvery and ReceiptTimeout find a peer whose kernel answers although the process does not. Defaults 500 ms
	// and 2.5 s: such a link breaks within 3 s of the peer's freezing.
	ReceiptEvery   time.Duration
	ReceiptTimeout time.Duration
}

// DefaultGRPCConfig returns the defaults.
func DefaultGRPCConfig() GRPCConfig {
	d := DefaultConfig()
	return GRPCConfig{
		MessageBytesMax:   d.FrameBytesMax + d.BatchBytesMax + 64<<10,
		StreamWindowBytes: 4 << 20,
		ConnWindowBytes:   8 << 20,
		BufferBytes:       64 << 10,
		KeepaliveEvery:    10 * time.Second,
		KeepaliveTimeout:  2 * time.Second,
		ReceiptEvery:      500 * time.Millisecond,
		ReceiptTimeout:    2500 * time.Millisecond,
	}
}

// Validate reports the first value that makes no sense.
func (c GRPCConfig) Validate() error {
	const windowMin = 64 << 10 // gRPC ignores smaller ones
	switch {
	case c.MessageBytesMax < 1:
		return fmt.Errorf("transport: message bytes max is %d; it is at least 1", c.MessageBytesMax)
	case c.StreamWindowBytes < windowMin || c.ConnWindowBytes < windowMin:
		return fmt.Errorf("transport: the flow-control windows are %d and %d bytes; they are at least %d",
			c.StreamWindowBytes, c.ConnWindowBytes, windowMin)
	case c.BufferBytes < 1:
		return fmt.Errorf("transport: buffer bytes is %d; it is at least 1", c.BufferBytes)
	case c.KeepaliveEvery <= 0 || c.KeepaliveTimeout <= 0 || c.ReceiptEvery <= 0 || c.ReceiptTimeout <= 0:
		return errors.New("transport: keepalive and receipt times are above 0")
	}
	return nil
}

// GRPCDeps is what the gRPC wire needs.
type GRPCDeps struct {
	// Self is asked for each new link, because a node may learn its cluster only after it started.
	Self func() Identity
	// Resolve finds the address of a peer.
	Resolve func(kv.NodeID) (addr string, ok bool)
	// Dial connects to an address; nil is TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// GRPCWire makes links of gRPC streams. Each link has a connection of its own, so that a new link never waits behind
// the remains of the one before; the pauses between attempts are the Mux's.
type GRPCWire struct {
	cfg   GRPCConfig
	deps  GRPCDeps
	codec codec // shared by the links, for its pool
}

// NewGRPCWire returns a wire over gRPC.
func NewGRPCWire(cfg GRPCConfig, deps GRPCDeps) (*GRPCWire, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Self == nil || deps.Resolve == nil {
		return nil, errors.New("transport: a gRPC wire needs to know who it is and how to find peers")
	}
	if deps.Dial == nil {
		var d net.Dialer
		deps.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	return &GRPCWire{cfg: cfg, deps: deps, codec: newCodec()}, nil
}

// Connect implements Wire. It returns once both ends have introduced themselves and found that they belong together.
func (w *GRPCWire) Connect(ctx context.Context, to kv.NodeID) (Link, error) {
	addr, ok := w.deps.Resolve(to)
	if !ok {
		return nil, errors.New("no address is known")
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, w.options()...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	self := w.deps.Self()
	md := metadata.Join(self.metadata(), metadata.Pairs(mdTo, strconv.FormatUint(uint64(to), 10)))
	// The stream outlives the attempt, but as long as this is an attempt its end ends the stream.
	streamCtx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.WithoutCancel(ctx), md))
	stop := context.AfterFunc(ctx, cancel)
	stream, err := w.open(streamCtx, conn, self, to)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("%s: %w", addr, err), conn.Close())
	}
	l := &grpcLink{
		conn: conn, stream: stream, cancel: cancel, every: w.cfg.ReceiptEvery, timeout: w.cfg.ReceiptTimeout,
		broken: make(chan struct{}), received: make(chan struct{}),
	}
	l.overdue = time.AfterFunc(time.Hour, func() { l.fail(errFrozen) })
	l.overdue.Stop()
	go l.receive()
	return l, nil
}

func (w *GRPCWire) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(w.deps.Dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithInitialWindowSize(w.cfg.StreamWindowBytes),
		grpc.WithInitialConnWindowSize(w.cfg.ConnWindowBytes),
		grpc.WithReadBufferSize(w.cfg.BufferBytes),
		grpc.WithWriteBufferSize(w.cfg.BufferBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: w.cfg.KeepaliveEvery, Timeout: w.cfg.KeepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(w.codec), grpc.MaxCallSendMsgSize(w.cfg.MessageBytesMax)),
	}
}

type peerStream = grpc.BidiStreamingClient[peerpb.Batch, peerpb.Receipt]

// open opens a stream and checks who is at its other end.
func (w *GRPCWire) open(ctx context.Context, conn *grpc.ClientConn, self Identity, to kv.NodeID) (peerStream, error) {
	stream, err := peerpb.NewPeerClient(conn).Deliver(ctx)
	if err != nil {
		return nil, err
	}
	md, err := stream.Header()
	if err == nil && md.Len() == 0 {
		// The stream ended without a header; its status says why.
		if _, err = stream.Recv(); err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it did not introduce itself", ErrProtocol)
		}
	}
	if err != nil {
		return nil, err
	}
	peer, err := introduced(md)
	if err != nil {
		return nil, err
	}
	if err := self.belongs(peer); err != nil {
		return nil, err
	}
	if peer.Node != to {
		return nil, fmt.Errorf("%w: %v is here instead of node %d", ErrWrongNode, peer, to)
	}
	return stream, nil
}

// errFrozen is why a link breaks whose receipts stay away.
var errFrozen = errors.New("the peer takes no batches: no receipt came in time")

// grpcLink is one stream and its connection.
type grpcLink struct {
	conn   *grpc.ClientConn
	stream peerStream
	cancel context.CancelFunc
	every  time.Duration
	// timeout is how long a receipt may take; overdue runs when it took longer.
	timeout time.Duration
	overdue *time.Timer

	closing  sync.Once
	closeErr error // of closing
	// received is closed when the receiving goroutine has ended.
	received chan struct{}
	broken   chan struct{}

	mu      sync.Mutex // guards the fields below
	err     error      // why the link is broken; set before broken is closed
	waiting bool       // a receipt was asked for and has not come
	asked   time.Time  // when the last one was asked for
}

// Send implements Link.
func (l *grpcLink) Send(batch []byte) error {
	raw := rawBatch{frames: batch, receipt: l.ask()}
	err := l.stream.SendMsg(&raw)
	if errors.Is(err, io.EOF) {
		// The stream has ended; the receiver is just learning why.
		<-l.broken
		return l.Err()
	}
	if err != nil {
		l.fail(err)
		return l.Err()
	}
	return nil
}

// ask reports whether the next batch should ask for a receipt: once in a while, one at a time.
func (l *grpcLink) ask() bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting || l.err != nil || now.Sub(l.asked) < l.every {
		return false
	}
	l.waiting, l.asked = true, now
	l.overdue.Reset(l.timeout)
	return true
}

// receive takes receipts until the stream ends.
func (l *grpcLink) receive() {
	defer close(l.received)
	for {
		_, err := l.stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("the peer closed the link")
		}
		if err != nil {
			l.fail(err)
			return
		}
		l.mu.Lock()
		l.waiting = false
		l.overdue.Stop()
		l.mu.Unlock()
	}
}

// fail breaks the link. The first reason stays.
func (l *grpcLink) fail(err error) {
	l.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		l.overdue.Stop()
	}
	l.mu.Unlock()
	if first {
		close(l.broken)
		l.cancel()
	}
}

// Broken implements Link.
func (l *grpcLink) Broken() <-chan struct{} { return l.broken }

// Err implements Link.
func (l *grpcLink) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close implements Link.
func (l *grpcLink) Close() error {
	l.fail(ErrClosed)
	l.closing.Do(func() { l.closeErr = l.conn.Close() })
	<-l.received
	return l.closeErr
}
