package transport

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

var errUnplugged = errors.New("unplugged")

// board connects muxes in memory. Batches are delivered by the sender's goroutine, so that what was sent has arrived.
type board struct {
	mu sync.Mutex // guards what follows
	// nodes are those that can be reached.
	nodes map[kv.NodeID]*Mux
	// stuck makes sends to a node block until the link is closed.
	stuck map[kv.NodeID]bool
	// swallow loses what is sent to a node; repeat delivers it twice.
	swallow, repeat map[kv.NodeID]bool
	links           []*boardLink
	connects        int
	sent            [][]byte
}

func newBoard() *board {
	return &board{
		nodes: map[kv.NodeID]*Mux{}, stuck: map[kv.NodeID]bool{}, swallow: map[kv.NodeID]bool{}, repeat: map[kv.NodeID]bool{},
	}
}

type boardWire struct {
	board *board
	self  kv.NodeID
}

func (w boardWire) Connect(_ context.Context, to kv.NodeID) (Link, error) {
	b := w.board
	b.mu.Lock()
	defer b.mu.Unlock()
	b.connects++
	if b.nodes[to] == nil {
		return nil, errUnplugged
	}
	l := &boardLink{board: b, from: w.self, to: to, broken: make(chan struct{})}
	b.links = append(b.links, l)
	return l, nil
}

type boardLink struct {
	board    *board
	from, to kv.NodeID
	once     sync.Once
	broken   chan struct{}
	err      error
}

func (l *boardLink) Send(batch []byte) error {
	b := l.board
	b.mu.Lock()
	target, stuck, swallow, times := b.nodes[l.to], b.stuck[l.to], b.swallow[l.to], 1
	if b.repeat[l.to] {
		times = 2
	}
	b.sent = append(b.sent, slices.Clone(batch))
	b.mu.Unlock()
	for stuck {
		select {
		case <-l.broken:
			stuck = false
		case <-time.After(time.Millisecond):
			b.mu.Lock()
			stuck = b.stuck[l.to]
			b.mu.Unlock()
		}
	}
	select {
	case <-l.broken:
		return l.err
	default:
	}
	if target == nil {
		l.fail(errUnplugged)
		return errUnplugged
	}
	if swallow {
		return nil
	}
	for range times {
		if err := target.Deliver(l.from, batch); err != nil {
			l.fail(err)
			return err
		}
	}
	return nil
}

func (l *boardLink) fail(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.broken)
	})
}

func (l *boardLink) Broken() <-chan struct{} { return l.broken }
func (l *boardLink) Err() error              { return l.err }

func (l *boardLink) Close() error {
	l.fail(ErrClosed)
	return nil
}

// unplug makes the node unreachable and breaks the links to it.
func (b *board) unplug(id kv.NodeID) {
	b.mu.Lock()
	delete(b.nodes, id)
	links := slices.Clone(b.links)
	b.mu.Unlock()
	for _, l := range links {
		if l.to == id {
			l.fail(errUnplugged)
		}
	}
}

func (b *board) plug(id kv.NodeID, m *Mux) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[id] = m
}

func (b *board) set(flags map[kv.NodeID]bool, id kv.NodeID, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	flags[id] = on
}

// loosen lets sends to the node go on.
func (b *board) loosen(id kv.NodeID) { b.set(b.stuck, id, false) }

// batches returns what was sent since the last time and had frames.
func (b *board) batches() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.DeleteFunc(b.sent, func(s []byte) bool { return len(s) == headerBytes })
	b.sent = nil
	return out
}

func (b *board) attempts() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects
}
