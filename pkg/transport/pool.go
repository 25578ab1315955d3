package transport

import (
	"math/bits"
	"sync"
)

// Buffers are pooled by powers of two between these; larger ones are left to the garbage collector.
const (
	poolBitsMin = 10
	poolBitsMax = 25
)

// bufferPool implements mem.BufferPool. gRPC's own has one class from 32 KiB to 1 MiB and clears a buffer's whole
// capacity on each use: for batches of 40 KiB that was a sixth of all processor time. Everything here overwrites what it
// gets.
type bufferPool struct {
	classes [poolBitsMax - poolBitsMin + 1]sync.Pool
}

// Get implements mem.BufferPool.
func (p *bufferPool) Get(length int) *[]byte {
	class := max(bits.Len(uint(max(length-1, 0))), poolBitsMin)
	if class > poolBitsMax {
		b := make([]byte, length)
		return &b
	}
	if b, ok := p.classes[class-poolBitsMin].Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, 1<<class)
	return &b
}

// Put implements mem.BufferPool.
func (p *bufferPool) Put(b *[]byte) {
	class := bits.Len(uint(cap(*b))) - 1
	if class >= poolBitsMin && class <= poolBitsMax && cap(*b) == 1<<class {
		p.classes[class-poolBitsMin].Put(b)
	}
}
