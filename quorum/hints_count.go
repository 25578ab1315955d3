package quorum

import (
	"github.com/caprockdb/caprock/pkg/storage"
)

// Count returns how many hints are kept of keys that match, up to a limit, those included that are not on the disk yet. Hints that
// Shut refuses from before the call on are not missed. A hint that cannot be read counts.
func (s *Hints) Count(match func(key []byte) bool, limit int) (int, error) {
	s.mu.Lock()
	queued, n := 0, 0
	var queues []storage.HintID
	for id, t := range s.targets {
		for p, q := range t.queues {
			queued += q.queued
			queues = append(queues, storage.HintID{Target: id, Partition: p})
		}
	}
	if queued > 0 {
		for k, r := range s.recent {
			if r.state != hintDurable && match([]byte(k.key)) {
				n++
			}
		}
		if len(s.recent) >= s.cfg.CoalesceMax {
			n = queued // some that are queued may have been forgotten there
		}
	}
	s.mu.Unlock()
	for _, id := range queues {
		err := s.deps.State.ScanHints(id, func(h storage.Hint, damaged error) bool {
			if damaged != nil || match(h.Key) {
				n++
			}
			return n < limit
		})
		if err != nil || n >= limit {
			return n, err
		}
	}
	return n, nil
}
