package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// Config bounds the traffic with peers. The limits are per peer unless they say otherwise.
type Config struct {
	// RaftOutboxBytesMax bounds the Raft frames that wait to be sent. Default 32 MiB. Beyond it they are dropped; Raft
	// repeats what mattered.
	RaftOutboxBytesMax int
	// DataOutboxBytesMax bounds the requests that wait to be sent. Default 32 MiB. Beyond it requests are refused as not
	// sent. Replies may take as much again, because dropping one turns a known outcome into an unknown one.
	DataOutboxBytesMax int
	// BatchBytesMax is the size at which a batch is closed and another one begun. Default 1 MiB.
	BatchBytesMax int
	// FrameBytesMax bounds one frame. Default 16 MiB. A larger one is refused, or dropped if it is Raft's. All nodes
	// must agree on it: a receiver refuses batches larger than FrameBytesMax and BatchBytesMax together.
	FrameBytesMax int
	// CallsMax bounds the calls that wait for a reply. Default 65,536. Beyond it requests are refused as not sent.
	CallsMax int
	// CallTimeout is the deadline of a call that came without one; CallTimeoutMax bounds the others. Defaults 5 s, 60 s.
	CallTimeout    time.Duration
	CallTimeoutMax time.Duration
	// SweepEvery is how often overdue calls are looked for, so how late a deadline may be noticed. Default 10 ms.
	SweepEvery time.Duration
	// IdleEvery is how long nothing may be sent before an empty batch is, which carries the clock and the epoch and lets
	// the wire find out whether the peer is still there. Default 1 s.
	IdleEvery time.Duration
	// ConnectTimeout bounds one attempt to connect. Default 2 s.
	ConnectTimeout time.Duration
	// BackoffMin and BackoffMax bound the pause between attempts to connect, which grows from the one to the other.
	// Defaults 50 ms and 1 s.
	BackoffMin time.Duration
	BackoffMax time.Duration
	// StableAfter is how long a link must have lived for the pauses to start over. Default 1 s. It keeps a peer that
	// accepts links and then refuses the first batch from being called without pause.
	StableAfter time.Duration
	// PeersMax bounds the peers this node talks to. Default 1,024.
	PeersMax int
	// DelayedBytesMax bounds what the fault injector holds back, over all peers. Default 64 MiB. Beyond it frames are
	// dropped.
	DelayedBytesMax int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		RaftOutboxBytesMax: 32 << 20,
		DataOutboxBytesMax: 32 << 20,
		BatchBytesMax:      1 << 20,
		FrameBytesMax:      16 << 20,
		CallsMax:           65536,
		CallTimeout:        kv.RequestTimeout,
		CallTimeoutMax:     kv.RequestTimeoutMax,
		SweepEvery:         10 * time.Millisecond,
		IdleEvery:          time.Second,
		ConnectTimeout:     2 * time.Second,
		BackoffMin:         50 * time.Millisecond,
		BackoffMax:         time.Second,
		StableAfter:        time.Second,
		PeersMax:           1024,
		DelayedBytesMax:    64 << 20,
	}
}

// Validate reports the first value that makes no sense.
func (c Config) Validate() error {
	for _, n := range []struct {
		name       string
		value, min int
	}{
		{"raft outbox bytes max", c.RaftOutboxBytesMax, 1},
		{"data outbox bytes max", c.DataOutboxBytesMax, 1},
		{"batch bytes max", c.BatchBytesMax, 1},
		{"frame bytes max", c.FrameBytesMax, 1},
		{"calls max", c.CallsMax, 1},
		{"peers max", c.PeersMax, 1},
		{"delayed bytes max", c.DelayedBytesMax, 0},
	} {
		if n.value < n.min {
			return fmt.Errorf("transport: %s is %d; it is at least %d", n.name, n.value, n.min)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"call timeout", c.CallTimeout},
		{"call timeout max", c.CallTimeoutMax},
		{"sweep interval", c.SweepEvery},
		{"idle interval", c.IdleEvery},
		{"connect timeout", c.ConnectTimeout},
		{"backoff min", c.BackoffMin},
		{"backoff max", c.BackoffMax},
		{"stable after", c.StableAfter},
	} {
		if d.value <= 0 {
			return fmt.Errorf("transport: %s is %v; it is above 0", d.name, d.value)
		}
	}
	switch {
	case c.FrameBytesMax > frameBytesCeiling:
		return fmt.Errorf("transport: frame bytes max is %d; it is at most %d", c.FrameBytesMax, frameBytesCeiling)
	case c.CallTimeout > c.CallTimeoutMax:
		return fmt.Errorf("transport: call timeout %v is above its maximum %v", c.CallTimeout, c.CallTimeoutMax)
	case c.BackoffMin > c.BackoffMax:
		return fmt.Errorf("transport: backoff min %v is above backoff max %v", c.BackoffMin, c.BackoffMax)
	}
	return nil
}

// Deps is what a Mux needs from its node.
type Deps struct {
	Self kv.NodeID
	Wire Wire
	// Clock is the node's hybrid clock. Every batch carries its last reading.
	Clock Clock
	// Epoch returns the epoch of the node's partition map. Every batch carries it.
	Epoch func() kv.Epoch
	// Cluster returns the cluster's identity, 0 while it is unknown. Two known ones must be equal.
	Cluster func() uint64
	Handler Handler
	// Pull takes peers' requests for parts of snapshots, like a method of Handler; nil refuses them.
	Pull       func(from kv.NodeID, payload []byte, reply func([]byte, error))
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Faults injects faults; nil without --dev.
	Faults *Faults
	// Rand spreads reconnects. The Mux keeps it for itself.
	Rand *rand.Rand
}

func (d Deps) validate() error {
	switch {
	case d.Self == kv.NoNode:
		return errors.New("transport: a mux needs its own node id")
	case d.Wire == nil || d.Clock == nil || d.Epoch == nil || d.Cluster == nil || d.Handler == nil:
		return errors.New("transport: a mux needs a wire, a clock, an epoch, a cluster and a handler")
	case d.Logger == nil || d.Registerer == nil || d.Rand == nil:
		return errors.New("transport: a mux needs a logger, a registerer and a random source")
	}
	return nil
}

// Clock is the part of causal.Clock that the transport uses.
type Clock interface {
	// Now is read once, to tell this life of the node from earlier ones.
	Now() (causal.HLC, error)
	Last() causal.HLC
	Observe(remote causal.HLC) error
}

// Wire makes links to peers.
type Wire interface {
	// Connect opens a link to the peer. ctx bounds the attempt, not the link.
	Connect(ctx context.Context, to kv.NodeID) (Link, error)
}

// Link is one direction of the traffic with one peer. Send is called by one goroutine at a time.
type Link interface {
	// Send hands a batch over. It may block for flow control until the link breaks or is closed. The batch is not
	// retained. An error breaks the link; whether the batch arrived is then unknown.
	Send(batch []byte) error
	// Broken is closed once the link is of no use any more, and Err then says why.
	Broken() <-chan struct{}
	Err() error
	// Close breaks the link and waits for whatever it runs. It may be called at any time, more than once.
	Close() error
}

// Handler takes what peers send. Its methods run on the goroutine that delivers the batch, so that a method that blocks
// holds up everything behind it, heartbeats included. Except for a Raft frame, what a method gets is its own to keep.
// reply is called once, from any goroutine.
type Handler interface {
	// HandleRaft takes a frame as it was given to Send. It is not retained.
	HandleRaft(from kv.NodeID, frame []byte)
	HandleWrite(from kv.NodeID, w quorum.WriteRequest, reply func(quorum.WriteReply, error))
	HandleRead(from kv.NodeID, r quorum.ReadRequest, reply func(quorum.ReadReply, error))
	HandleScan(from kv.NodeID, r quorum.ScanRequest, reply func(quorum.ScanReply, error))
	// HandleWrites, HandleReads and HandleForwards take many requests at once, none of them a hint, and answer each.
	HandleWrites(from kv.NodeID, ws []quorum.WriteRequest, reply func([]quorum.WriteResult))
	HandleReads(from kv.NodeID, rs []quorum.ReadRequest, reply func([]quorum.ReadResult))
	HandleForwards(from kv.NodeID, rs []kv.Request, deadline time.Time, reply func([]kv.Answer))
	HandleForward(from kv.NodeID, r kv.Request, deadline time.Time, reply func(kv.Response, error))
	HandleExchange(from kv.NodeID, payload []byte, reply func([]byte, error))
	HandleMeta(from kv.NodeID, payload []byte, reply func([]byte, error))
}
