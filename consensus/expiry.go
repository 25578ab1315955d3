package consensus

import (
	"context"
	"encoding/binary"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Expiry of strong keys. A put's time to live travels as it was asked for; the expiry is the entry's own time plus it,
// the same on every replica. A value is there until an entry says otherwise: one that finds it expired by the entry's own
// time, which then treats the key as absent and leaves a tombstone, or one that was proposed to remove it. So the order of
// the log is also the order in which a key expires: no read or condition sees a value after another one has missed it,
// whatever clocks do.

// ExpireMax bounds the keys of one call of Expire.
const ExpireMax = 256

// Expiring is a key and the time at which it was set to expire.
type Expiring struct {
	At  causal.HLC
	Key []byte
}

// Expired reports whether the state is a value that has expired at the time.
func Expired(s storage.Strong, at causal.HLC) bool {
	return !s.Deleted && s.Expiry != 0 && s.Expiry <= at
}

// Expire removes, by an entry, those of the values that expired by the time of the entry and were not replaced. It works on
// the leader only. keys must not be empty.
func (s *Store) Expire(ctx context.Context, g kv.GroupID, keys []Expiring) error {
	keys = keys[:min(len(keys), ExpireMax)]
	p := Proposal{Key: keys[0].Key, Command: encodeExpire(keys)}
	for _, k := range keys[1:] {
		p.More = append(p.More, k.Key)
	}
	_, err := s.Propose(ctx, g, p)
	return err
}

func encodeExpire(keys []Expiring) []byte {
	dst := []byte{commandFormatMore, 0, commandExpire}
	dst = binary.AppendUvarint(dst, uint64(len(keys)))
	for _, k := range keys {
		dst = appendBytes(causal.AppendHLC(dst, k.At), k.Key)
	}
	return dst
}

func (c *command) readExpire(r *reader) {
	r.byte("operation")
	n := r.count("keys")
	if r.err == nil && (n == 0 || !c.ID.IsZero()) {
		r.fail("expiry:")
	}
	if r.err != nil {
		return
	}
	c.expire = make([]Expiring, n)
	for i := range c.expire {
		if r.err == nil {
			c.expire[i].At, r.b, r.err = causal.DecodeHLC(r.b)
		}
		c.expire[i].Key = r.bytes("key")
	}
}

// expiryOf returns when what the write sets expires; 0 for never.
func expiryOf(op *WriteOp, e Committed) causal.HLC {
	switch op.TTL {
	case 0:
		return 0
	case kv.TTLKeep:
		return op.kept
	}
	return causal.MakeHLC(e.Time.Millis()+op.TTL.Milliseconds(), e.Time.Counter())
}

// lapsed is a row that an entry found expired.
type lapsed struct {
	key   []byte
	state storage.Strong
	// noted is when the index has the key expire, which it need no longer.
	noted causal.HLC
}

// decideExpire finds the rows that an expiry command removes, and those of the index that are of no more use.
func (m kvMachine) decideExpire(keys []Expiring, e Committed) ([]lapsed, error) {
	var out []lapsed
	for _, k := range keys {
		if k.At > e.Time {
			continue
		}
		s, found, err := m.state.Strong(e.Group, k.Key)
		if err != nil {
			return nil, err
		}
		one := lapsed{key: k.Key, noted: k.At}
		switch {
		case found && s.Expiry == k.At && Expired(s, e.Time):
			one.state = s
		case found && !s.Deleted && mutant.Planted == mutant.ExpiryUnchecked:
			one.state, one.state.Expiry = s, k.At
		}
		out = append(out, one)
	}
	return out, nil
}

// write leaves a tombstone in the place of the value. It has the value's stamp and not the entry's: what was written
// eventually after the value is not covered by its end.
func (l *lapsed) write(b *storage.Batch, e Committed) {
	if l.state.Expiry != 0 {
		b.SetStrong(e.Group, l.key, storage.Strong{
			Deleted: true, Revision: e.Pos.Index, Stamp: l.state.Stamp, Covered: l.state.Covered,
			Before: l.state.Before, Base: l.state.Base,
		})
	}
	if l.noted != 0 {
		b.DeleteExpiry(e.Group, l.noted, l.key)
	}
}
