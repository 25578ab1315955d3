package api

import (
	"context"
	"runtime"
	"sync"

	"google.golang.org/grpc"

	"github.com/caprockdb/caprock/api/kvwire"
)

// outbox collects the results of a stream until the sender takes them, all that have come by then in one message. It also
// keeps the stream's bounds.
type outbox struct {
	cfg  GRPCConfig
	wake chan struct{} // one slot: there is something to send
	room chan struct{} // one slot: something was released

	mu    sync.Mutex // guards what follows
	ready [][]byte   // full messages, oldest first
	last  []byte     // the message that is being filled
	spare []byte     // memory for the next
	ops   int        // accepted and not answered
	// bytes counts the operations' own while they are under way, and the results' until they are sent.
	bytes int
	// expected is about how large the results of reads are: the largest of late. It is reserved for each read, because the
	// bound would come too late for thousands of reads of large values that have been accepted already.
	expected int
	waiting  bool // somebody waits for room
	closed   bool // no more results will come
}

func newOutbox(cfg GRPCConfig) *outbox {
	return &outbox{cfg: cfg, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// reserve takes room for an operation, and waits for it. false: ctx was done before. An operation that is larger than all the
// room there is gets in once the stream is empty.
func (o *outbox) reserve(ctx context.Context, size int, read bool) (reserved int, ok bool) {
	for {
		o.mu.Lock()
		reserved = size
		if read {
			reserved += o.expected
		}
		empty := o.ops == 0 && o.bytes == 0
		if empty || (o.ops < o.cfg.StreamOpsMax && o.bytes+reserved <= o.cfg.StreamBytesMax) {
			o.ops++
			o.bytes += reserved
			o.mu.Unlock()
			return reserved, true
		}
		o.waiting = true
		o.mu.Unlock()
		select {
		case <-o.room:
		case <-ctx.Done():
			return 0, false
		}
	}
}

// add takes the result of an operation for which the bytes were reserved. It copies the result.
func (o *outbox) add(r *kvwire.Result, reserved int) {
	o.mu.Lock()
	before := len(o.last)
	o.last = kvwire.AppendResult(o.last, r)
	size := len(o.last) - before
	o.ops--
	o.bytes += size - reserved
	if r.Err == nil && !r.HasOutcome { // a read's
		o.expected = max(size, o.expected-o.expected/8)
	}
	first := before == 0 && len(o.ready) == 0
	if len(o.last) >= o.cfg.ResultBytesMax {
		o.ready = append(o.ready, o.last)
		o.last, o.spare = o.spare, nil
	}
	room := o.takeWaiting()
	o.mu.Unlock()
	if first {
		poke(o.wake)
	}
	if room {
		poke(o.room)
	}
}

// takeWaiting reports whether somebody waits for room, and is to be told. The caller holds the mutex.
func (o *outbox) takeWaiting() bool {
	was := o.waiting
	o.waiting = false
	return was
}

// close lets the sender end once it has sent what there is.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	poke(o.wake)
}

// take returns the next message, nil when there is none; closed reports that there never will be.
func (o *outbox) take() (message []byte, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.ready) > 0:
		message = o.ready[0]
		o.ready[0] = nil
		o.ready = o.ready[1:]
	case len(o.last) > 0:
		message = o.last
		o.last, o.spare = o.spare, nil
	}
	return message, o.closed
}

// sent releases a message that take returned.
func (o *outbox) sent(message []byte) {
	o.mu.Lock()
	o.bytes -= len(message)
	if cap(message) <= 2*o.cfg.ResultBytesMax {
		if o.last == nil {
			o.last = message[:0]
		} else {
			o.spare = message[:0]
		}
	}
	room := o.takeWaiting()
	o.mu.Unlock()
	if room {
		poke(o.room)
	}
}

// send sends results as they come, until no more will.
func (s *opStream) send(stream grpc.ServerStream) error {
	frame := kvwire.NewFrame()
	drain := s.g.drain
	for {
		select {
		case <-s.out.wake:
		case <-drain:
			drain = nil // once is enough
			frame.Data = kvwire.AppendDraining(nil)
			if err := stream.SendMsg(frame); err != nil {
				return err
			}
			continue
		}
		for {
			// Operations that were committed together finish together: let their workers add to the message first.
			runtime.Gosched()
			message, closed := s.out.take()
			if message == nil && closed {
				return nil
			}
			if message == nil {
				break
			}
			frame.Data = message
			if err := stream.SendMsg(frame); err != nil {
				return err
			}
			s.out.sent(message)
		}
	}
}
