package quorum

import "sync/atomic"

// WriteEach is Write for many requests. What they change is one commit, and done is called once with a result for each, when
// the last is known.
func (s *Store) WriteEach(ws []WriteRequest, done func([]WriteResult)) {
	results := make([]WriteResult, len(ws))
	var missing atomic.Int64
	missing.Store(int64(len(ws)) + 1)
	count := func() {
		if missing.Add(-1) == 0 {
			done(results)
		}
	}
	commits := make([]*commit, 0, len(ws))
	for i := range ws {
		c := s.take(ws[i], false, func(r WriteReply, err error) {
			results[i] = WriteResult{r, err}
			count()
		})
		if c != nil {
			commits = append(commits, c)
		}
	}
	// A commit that is refused reports to everyone who waits for it.
	_ = s.pending.offerAll(commits)
	count()
}
