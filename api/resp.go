package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// RESPConfig holds the limits and time-outs of the Redis front.
type RESPConfig struct {
	// Limits bounds keys and values, in bytes.
	Limits kv.Limits
	// RequestTimeout is the deadline of every command: the protocol has no way to ask for another.
	RequestTimeout time.Duration
	// ConnectionsMax is how many clients may be connected; the next one is told so and cut.
	ConnectionsMax int
	// ArgsMax bounds the arguments of a command, its name included.
	ArgsMax int
	// KeysMax bounds the keys of one MGET, MSET, DEL or EXISTS.
	KeysMax int
	// BulkBytesMax bounds one argument. It is above the largest value, so that a value slightly too large is answered
	// with an error of the command instead of the end of the connection.
	BulkBytesMax int
	// CommandBytesMax bounds all arguments of a command together.
	CommandBytesMax int
	// ReplyBytesMax bounds the values that one MGET may return together.
	ReplyBytesMax int
	// IdleTimeout is how long a client may send nothing, between commands or within one.
	IdleTimeout time.Duration
	// WriteTimeout bounds how long a client may take to accept a reply.
	WriteTimeout time.Duration
}

// DefaultRESPConfig returns the limits of a production node.
func DefaultRESPConfig() RESPConfig {
	return RESPConfig{
		Limits:          kv.DefaultLimits(),
		RequestTimeout:  kv.RequestTimeout,
		ConnectionsMax:  10_000,
		ArgsMax:         1 << 14,
		KeysMax:         1_000,
		BulkBytesMax:    4 << 20,
		CommandBytesMax: 16 << 20,
		ReplyBytesMax:   64 << 20,
		IdleTimeout:     10 * time.Minute,
		WriteTimeout:    30 * time.Second,
	}
}

// Validate reports the first setting that makes no sense.
func (c RESPConfig) Validate() error {
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"Limits.KeyBytesMax", int64(c.Limits.KeyBytesMax)},
		{"Limits.ValueBytesMax", int64(c.Limits.ValueBytesMax)},
		{"RequestTimeout", int64(c.RequestTimeout)},
		{"ConnectionsMax", int64(c.ConnectionsMax)},
		{"ArgsMax", int64(c.ArgsMax)},
		{"KeysMax", int64(c.KeysMax)},
		{"ReplyBytesMax", int64(c.ReplyBytesMax)},
		{"IdleTimeout", int64(c.IdleTimeout)},
		{"WriteTimeout", int64(c.WriteTimeout)},
	} {
		if field.value < 1 {
			return fmt.Errorf("api: RESPConfig.%s is %d: it must be at least 1", field.name, field.value)
		}
	}
	if c.BulkBytesMax <= c.Limits.ValueBytesMax || c.CommandBytesMax < c.BulkBytesMax {
		return fmt.Errorf("api: RESPConfig: bulk limit %d and command limit %d: the first must exceed the largest value of %d bytes, "+
			"the second must not be below the first", c.BulkBytesMax, c.CommandBytesMax, c.Limits.ValueBytesMax)
	}
	return nil
}

// RESP is the Redis front: a useful part of the Redis protocol, version 2, over the Backend.
type RESP struct {
	cfg      RESPConfig
	deps     Deps
	exec     *executor
	commands map[string]respCommand
	started  time.Time

	// base is the context of every command; cut cancels it when shutdown runs out of patience.
	base context.Context
	cut  context.CancelFunc

	// draining is set before read deadlines are moved into the past; see respConn.Read.
	draining atomic.Bool
	running  sync.WaitGroup // one for each connection
	turns    *turns
	cursors  *scanCursors
	accepted atomic.Uint64
	executed atomic.Uint64

	mu        sync.Mutex // guards what follows
	conns     map[net.Conn]struct{}
	listeners map[net.Listener]struct{}
}

// NewRESP returns the Redis front.
func NewRESP(cfg RESPConfig, deps Deps) (*RESP, error) {
	exec, err := executorOf(cfg.Validate(), deps, cfg.Limits)
	if err != nil {
		return nil, err
	}
	base, cut := context.WithCancel(context.Background())
	return &RESP{
		cfg:       cfg,
		deps:      deps,
		exec:      exec,
		commands:  respCommands(),
		started:   deps.WallNow(),
		turns:     newTurns(),
		cursors:   newScanCursors(),
		base:      base,
		cut:       cut,
		conns:     make(map[net.Conn]struct{}),
		listeners: make(map[net.Listener]struct{}),
	}, nil
}

// Serve accepts connections until Shutdown, and then returns nil. It closes the listener.
func (s *RESP) Serve(l net.Listener) error {
	defer l.Close()
	if !s.addListener(l) {
		return nil
	}
	const pauseMin, pauseMax = 5 * time.Millisecond, time.Second
	pause := pauseMin
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = pauseMin
			s.admit(nc)
		case s.draining.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("api: redis listener: %w", err)
		default: // out of file descriptors, most likely: it passes, and spinning would not help
			s.deps.Logger.Warn("redis listener cannot accept", slog.String("error", err.Error()))
			time.Sleep(pause)
			pause = min(2*pause, pauseMax)
		}
	}
}

// addListener reports false when shutdown has begun.
func (s *RESP) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

// admit serves the connection in a goroutine of its own, unless there are too many.
func (s *RESP) admit(nc net.Conn) {
	s.accepted.Add(1)
	s.mu.Lock()
	draining, full := s.draining.Load(), len(s.conns) >= s.cfg.ConnectionsMax
	if !draining && !full {
		s.conns[nc] = struct{}{}
		s.running.Add(1)
	}
	s.mu.Unlock()
	if draining || full {
		if full {
			_ = nc.SetWriteDeadline(time.Now().Add(refuseTimeout))
			_, _ = nc.Write(redcon.AppendError(nil, "ERR max number of clients reached"))
		}
		_ = nc.Close()
		return
	}
	go s.serve(nc)
}

// refuseTimeout bounds the courtesy to a client that is one too many, since it holds up the others.
const refuseTimeout = 100 * time.Millisecond

func (s *RESP) serve(nc net.Conn) {
	defer s.running.Done()
	defer func() {
		_ = nc.Close()
		s.mu.Lock()
		delete(s.conns, nc)
		s.mu.Unlock()
	}()
	c := &respConn{s: s, nc: nc}
	c.in = respReader{in: bufio.NewReaderSize(c, respBufferBytes), cfg: &s.cfg}
	defer func() {
		if cause := recover(); cause != nil {
			s.deps.Logger.Error("redis command panicked", slog.Any("cause", cause), slog.String("stack", string(debug.Stack())))
		}
	}()
	c.run()
}

// connected returns the number of connections.
func (s *RESP) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown stops accepting, lets every connection finish the commands that have arrived, and closes it. When the
// context is done first, what is left is cut and the context's error returned.
func (s *RESP) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.mu.Lock()
	for l := range s.listeners {
		_ = l.Close()
	}
	for nc := range s.conns {
		_ = nc.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	defer s.cut()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.cut()
	s.mu.Lock()
	for nc := range s.conns {
		_ = nc.Close()
	}
	s.mu.Unlock()
	<-done
	return ctx.Err()
}

// respConn is one connection, served by one goroutine.
type respConn struct {
	s     *RESP
	nc    net.Conn
	in    respReader
	out   []byte   // replies not yet sent
	level kv.Level // chosen by CONSISTENCY; LevelUnset leaves it to the policy
	// staleness goes with level bounded.
	staleness time.Duration
	quit      bool
}

// respReplyBytes is how many bytes of replies are collected, while more commands of a pipeline are here, before they
// are sent.
const respReplyBytes = 64 << 10

// errDraining ends a connection once what had arrived before the shutdown is answered.
var errDraining = errors.New("api: shutting down")

// run serves commands until the client is done, or shutdown asks to stop.
func (c *respConn) run() {
	for !c.quit {
		args, err := c.in.next()
		if violation, ok := errors.AsType[*protocolError](err); ok {
			c.out = redcon.AppendError(c.out, "ERR "+violation.Error())
			break
		}
		if err != nil {
			break // gone, idle for too long, or shutting down; what was answered is still sent
		}
		if len(args) > 0 {
			c.s.executed.Add(1)
			c.command(args)
		}
		if len(c.out) >= respReplyBytes && c.flush() != nil {
			return
		}
	}
	_ = c.flush()
}

// Read is what the command reader reads from. Only here does a connection wait for its client, even in the middle of a
// command, so this is where replies leave first: one write for all commands that arrived together.
//
// The deadline is set before the flag is looked at, and Shutdown sets the flag before its own deadline in the past, so
// that whichever order the two meet in, nothing is waited for once shutdown has begun.
func (c *respConn) Read(p []byte) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.s.cfg.IdleTimeout))
	if c.s.draining.Load() {
		return 0, errDraining
	}
	return c.nc.Read(p)
}

func (c *respConn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.s.cfg.WriteTimeout))
	_, err := c.nc.Write(c.out)
	if cap(c.out) > 4*respReplyBytes {
		c.out = nil
	}
	c.out = c.out[:0]
	return err
}
