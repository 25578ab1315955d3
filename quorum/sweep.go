package quorum

import (
	"bytes"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// What the sweep of a prefix that becomes strong-only asks of a replica (ADR 0014).

// sweepRowsMax bounds the rows that one call of UnsettledKeys looks at.
const sweepRowsMax = 1 << 12

// UnsettledKeys lists keys of a partition, after the given one, of which this replica holds versions that the strong lane's state does
// not cover here. It returns the last key that it looked at, and whether there may be more. What was accepted before the last
// Flush is not missed.
func (s *Store) UnsettledKeys(p kv.PartitionID, prefix, after []byte, limit int, match func(key []byte) bool) (
	keys [][]byte, last []byte, more bool, err error,
) {
	if err := s.unfit(p); err != nil {
		return nil, nil, false, err
	}
	from := prefix
	if bytes.Compare(after, from) >= 0 {
		from = append(bytes.Clone(after), 0) // the next key in the order of bytes
	}
	rows := 0
	err = s.deps.State.ScanSiblings(p, from, func(key []byte, set causal.SiblingSet) (bool, error) {
		if !bytes.HasPrefix(key, prefix) {
			return false, nil
		}
		if rows == sweepRowsMax || len(keys) == limit {
			more = true
			return false, nil
		}
		rows++
		last = bytes.Clone(key)
		if len(set.Siblings) == 0 || !match(key) {
			return true, nil
		}
		left, err := s.unsettled(p, key, set)
		if left {
			keys = append(keys, last)
		}
		return true, err
	})
	if err != nil {
		return nil, nil, false, unread(err)
	}
	return keys, last, more, s.unfit(p) // whoever takes rows away says so before
}

// unsettled reports whether the strong lane's state does not cover all of the set.
func (s *Store) unsettled(p kv.PartitionID, key []byte, set causal.SiblingSet) (bool, error) {
	strong, found, err := s.strong(p, key)
	v := versions{hasStrong: found, strong: strong}
	return err == nil && len(v.surviving(set, s.deps.KeepsSiblings(key)).Siblings) > 0, err
}

// Settlement is what the versions of a key come to when all of them are taken into the log at once.
type Settlement struct {
	// Takes are the write ids that are taken in; none: nothing is left to do.
	Takes []causal.Dot
	// Winner is what the state becomes. Its id is one of Takes, and its stamp above the state's, unless Keeps is set: then the
	// state stays what it is, and only takes the ids in.
	Winner causal.Sibling
	Keeps  bool
	// Base is storage.Strong.Base of what the state becomes.
	Base []byte
	// Anew says that the state is stamped above all that is taken in: the winner needs the stamp of an entry.
	Anew bool
	// Conflict says that the resolver keeps more than one of them, which no state can hold.
	Conflict bool
}

// Settle works out, of what all replicas hold, what the strong lane's state has to become for nothing to be left beside it. now
// decides what has expired.
func (f *Findings) Settle(state ReadReply, r Resolver, now causal.HLC) Settlement {
	if !r.KeepsSiblings() {
		winner, found := f.Winner(state)
		if !found {
			return Settlement{}
		}
		return Settlement{Takes: []causal.Dot{winner.ID}, Winner: winner}
	}
	out := Settlement{Takes: f.IDs(state)}
	if len(out.Takes) == 0 {
		return out
	}
	out.Base = f.Base(state, r)
	v := versions{hasStrong: state.HasStrong, strong: state.Strong, set: f.set, now: now}
	seen := v.seen(true)
	if len(seen) == 0 {
		out.Keeps = true
		return out
	}
	live := 0
	for i := range seen {
		if !seen[i].Deleted {
			live++
		}
	}
	_, leaves := r.(Siblings)
	out.Conflict = leaves && live > 0 && len(seen) > 1
	// The state may be one of those seen. What they come to then has a stamp of its own, above it.
	top := v.visible(true)[0]
	for _, s := range v.visible(true)[1:] {
		if s.Stamp.After(top.Stamp) {
			top = s
		}
	}
	// So has a counter's: its stamp names what it counts, which the version of that stamp counts only a part of.
	_, counts := r.(Counter)
	out.Anew = counts || state.HasStrong && !top.Stamp.After(state.Strong.Stamp)
	made := v.combine(r, seen)
	top.Value, top.Deleted, top.State, top.Expiry = made.Value, made.Deleted, false, made.Expiry
	out.Winner = top
	return out
}
