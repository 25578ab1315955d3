package quorum

import (
	"github.com/caprockdb/caprock/pkg/storage"
)

// safety is what has become of a write when somebody is told of it.
type safety uint8

const (
	// durable: the disk has synced it.
	durable safety = iota
	// visible: reads find it, and it is queued for the log (durability=async).
	visible
)

// await has done called once the commit is as safe as wanted, or has failed. It returns false when it already is; done is then not kept. The
// entry's stripe must be locked.
func (c *commit) await(want safety, done func(error)) bool {
	switch {
	case want == durable:
		c.waiters = append(c.waiters, done)
	case c.shown:
		return false
	default:
		// Of a commit that waits for the disk nobody says when it is visible: done is called with the others.
		c.early = append(c.early, done)
	}
	return true
}

// show tells those who do not wait for the disk that the commit's content can be read.
func (c *commit) show() {
	st := c.entry.stripe
	st.mu.Lock()
	early := c.early
	c.early, c.shown = nil, true
	st.mu.Unlock()
	for _, done := range early {
		done(nil)
	}
}

// offer hands the commit to the committer. No lock is held.
func (p *pendingKeys) offer(c *commit) error {
	if c == nil {
		return nil
	}
	var err error
	if c.async {
		err = p.committer.CommitAsync(c.fill, c.show, c.done)
	} else {
		err = p.committer.Commit(c.fill, c.done)
	}
	if err != nil {
		c.done(err)
		return notCommitted(err, false)
	}
	return nil
}

// offerAll hands the commits, of different keys, to the committer, as one batch those that wait for the disk and as one those that do not. Its
// error is the first. No lock is held.
func (p *pendingKeys) offerAll(commits []*commit) error {
	if len(commits) == 0 {
		return nil
	}
	async := 0
	for _, c := range commits {
		if c.async {
			async++
		}
	}
	if async == 0 || async == len(commits) {
		return p.offerAlike(commits, async > 0)
	}
	var alike [2][]*commit
	for _, c := range commits {
		if c.async {
			alike[1] = append(alike[1], c)
		} else {
			alike[0] = append(alike[0], c)
		}
	}
	err := p.offerAlike(alike[0], false)
	if late := p.offerAlike(alike[1], true); err == nil {
		err = late
	}
	return err
}

func (p *pendingKeys) offerAlike(commits []*commit, async bool) error {
	fill := func(b *storage.Batch) {
		for _, c := range commits {
			c.fill(b)
		}
	}
	done := func(err error) {
		for _, c := range commits {
			c.done(err)
		}
	}
	var err error
	if async {
		err = p.committer.CommitAsync(fill, func() {
			for _, c := range commits {
				c.show()
			}
		}, done)
	} else {
		err = p.committer.Commit(fill, done)
	}
	if err != nil {
		done(err)
		return notCommitted(err, false)
	}
	return nil
}
