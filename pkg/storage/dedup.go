package storage

import (
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
)

// DeleteDedupRange forgets the operations of the group whose ids lie in [from, to).
func (b *Batch) DeleteDedupRange(g kv.GroupID, from, to []byte) {
	invariant.Check(string(from) < string(to), "range of operation ids from %x to %x", from, to)
	b.key = appendDedupKey(b.key[:0], g, from)
	b.head = appendDedupKey(b.head[:0], g, to)
	b.removeRange(b.key, b.head)
}
