package transport

import (
	"slices"

	"github.com/caprockdb/caprock/pkg/invariant"
)

// spareBytesMax is the capacity up to which a sent chunk's memory is kept for the next one, and sparesMax how many are
// kept: one is being filled while another is being sent. idleSpareBytesMax is what a peer keeps that is sent nothing.
const (
	spareBytesMax     = 2 << 20
	idleSpareBytesMax = 64 << 10
	sparesMax         = 2
)

// chunk is a batch in the making: room for a header, then whole frames.
type chunk struct {
	number uint64
	buf    []byte
}

// frames is how many bytes of the chunk are frames.
func (c *chunk) frames() int { return len(c.buf) - headerBytes }

// outbox is a queue of frames for one peer and class of traffic. Frames are encoded in place, into the chunk that will
// be the batch. Chunks are numbered from 1 on, so that a call can tell whether its frame is still here.
type outbox struct {
	chunks []chunk
	// bytes counts the frames in chunks.
	bytes int
	// newest is the number of the last chunk made, taken that of the last one handed out.
	// Invariant: chunks are numbered taken+1 … newest.
	newest, taken uint64
	spares        [][]byte
}

// tail returns the chunk that the next frame goes into. A chunk takes no more frames once it has chunkBytesMax.
func (o *outbox) tail(chunkBytesMax int) *chunk {
	if n := len(o.chunks); n > 0 && o.chunks[n-1].frames() < chunkBytesMax {
		return &o.chunks[n-1]
	}
	var buf []byte
	switch n := len(o.spares); {
	case n > 0:
		buf, o.spares = o.spares[n-1], o.spares[:n-1]
	case len(o.chunks) > 0:
		// The one before is full, so this one most likely will be: growing it step by step would copy it twice.
		buf = make([]byte, headerBytes, headerBytes+chunkBytesMax+chunkBytesMax/8)
	default:
		buf = make([]byte, headerBytes, 4<<10)
	}
	o.newest++
	o.chunks = append(o.chunks, chunk{number: o.newest, buf: buf[:headerBytes]})
	return &o.chunks[len(o.chunks)-1]
}

// head returns how many bytes of frames the next chunk has, 0 when there is none.
func (o *outbox) head() int {
	if len(o.chunks) == 0 {
		return 0
	}
	return o.chunks[0].frames()
}

// take hands the oldest chunk out. The caller owns its memory until it gives it back with recycle.
func (o *outbox) take() []byte {
	buf := o.chunks[0].buf
	o.bytes -= o.chunks[0].frames()
	o.taken = o.chunks[0].number
	// There are few: at most limit/chunkBytesMax.
	copy(o.chunks, o.chunks[1:])
	o.chunks[len(o.chunks)-1] = chunk{}
	o.chunks = o.chunks[:len(o.chunks)-1]
	return buf
}

// recycle gives back the memory of a chunk that was sent.
func (o *outbox) recycle(buf []byte) {
	if cap(buf) <= spareBytesMax && len(o.spares) < sparesMax {
		o.spares = append(o.spares, buf)
	}
}

// trim lets go of large spares.
func (o *outbox) trim() {
	o.spares = slices.DeleteFunc(o.spares, func(buf []byte) bool { return cap(buf) > idleSpareBytesMax })
}

// queued reports whether the chunk is still here.
func (o *outbox) queued(number uint64) bool { return number > o.taken }

// void takes back the request whose frame starts at offset in a queued chunk.
func (o *outbox) void(number uint64, offset int) {
	invariant.Check(o.queued(number) && number <= o.newest, "chunk %d is not among %d+1…%d", number, o.taken, o.newest)
	buf := o.chunks[number-o.taken-1].buf
	invariant.Check(kind(buf[offset]).isRequest(), "frame kind %d is taken back", buf[offset])
	buf[offset] = byte(kindVoid)
}

// reset drops everything.
func (o *outbox) reset() {
	for i := range o.chunks {
		o.recycle(o.chunks[i].buf)
		o.chunks[i] = chunk{}
	}
	o.chunks, o.bytes, o.taken = o.chunks[:0], 0, o.newest
}
