package consensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// export is a snapshot that a peer is pulling.
type export struct {
	group kv.GroupID
	to    kv.NodeID
	snap  *storage.GroupSnapshot
	used  time.Time
	// rows is the memory of the last chunk, for the next one. It belongs to whoever has the snapshot in use.
	rows []byte
	// busy says that a request reads the snapshot; closing, that it is to be closed once that is done.
	busy, closing bool
}

// exports are the snapshots that peers are pulling from this node.
type exports struct {
	mu sync.Mutex // guards the fields below; not held while storage is read
	// open counts those that are being opened, too, which are not in sessions yet.
	open     int
	last     uint64 // the last session's number; the first is drawn at random
	sessions map[uint64]*export
	closed   bool
}

// reserve takes room for one more, unless there are limit.
func (x *exports) reserve(limit int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || x.open >= limit {
		return false
	}
	x.open++
	return true
}

// release gives back the room of one that could not be opened.
func (x *exports) release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open--
}

// add enters a snapshot for which there is room, in use. It returns false when the store has ended meanwhile.
func (x *exports) add(e *export) (session uint64, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		x.open--
		return 0, false
	}
	x.last++
	e.busy, e.used = true, time.Now()
	x.sessions[x.last] = e
	return x.last, true
}

// use returns a peer's snapshot for reading; pullBusy when somebody reads it.
func (x *exports) use(session uint64, g kv.GroupID, by kv.NodeID) (*export, pullStatus) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.sessions[session]
	switch {
	case e == nil || e.group != g || e.to != by || e.closing:
		return nil, pullGone
	case e.busy:
		return nil, pullBusy
	}
	e.busy = true
	return e, pullOK
}

// put ends the use of a snapshot.
func (x *exports) put(session uint64, e *export) {
	x.mu.Lock()
	e.busy, e.used = false, time.Now()
	closing := e.closing
	if closing {
		x.removeLocked(session)
	}
	x.mu.Unlock()
	if closing {
		e.snap.Close()
	}
}

func (x *exports) removeLocked(session uint64) {
	delete(x.sessions, session)
	x.open--
}

// drop closes the snapshots that match, at once or when their reader is done.
func (x *exports) drop(match func(session uint64, e *export) bool) {
	x.mu.Lock()
	var out []*export
	for session, e := range x.sessions {
		if !match(session, e) {
			continue
		}
		if e.closing = true; !e.busy {
			x.removeLocked(session)
			out = append(out, e)
		}
	}
	x.mu.Unlock()
	for _, e := range out {
		e.snap.Close()
	}
}

// expire closes those that were not asked for since the time.
func (x *exports) expire(since time.Time) {
	x.drop(func(_ uint64, e *export) bool { return !e.busy && e.used.Before(since) })
}

// close closes all and refuses new ones.
func (x *exports) close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.drop(func(uint64, *export) bool { return true })
}

// active reports when the peer last pulled a snapshot of the group; false when it has none open.
func (x *exports) active(g kv.GroupID, to kv.NodeID) (last time.Time, found bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.sessions {
		if e.group == g && e.to == to && !e.closing {
			if e.busy {
				return time.Now(), true
			}
			if !found || e.used.After(last) {
				last, found = e.used, true
			}
		}
	}
	return last, found
}

// ServePull answers a request that a peer sent with Puller.Pull. It blocks for the disk and for the rate limit.
func (s *Store) ServePull(ctx context.Context, from kv.NodeID, request []byte) ([]byte, error) {
	if len(request) > 0 && request[0] == checkFormat {
		return s.serveCheckRequest(ctx, from, request)
	}
	p, err := decodePullRequest(request)
	if err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "%w", err)
	}
	var reply []byte
	switch p.verb {
	case pullOpen:
		reply, err = s.openExport(ctx, from, &p)
	case pullNext:
		e, status := s.exports.use(p.session, p.group, from)
		if status != pullOK {
			return statusReply(status), nil
		}
		reply, err = s.readExport(ctx, p.session, e, p.after)
	default:
		s.exports.drop(func(session uint64, e *export) bool { return session == p.session && e.to == from })
		reply = statusReply(pullOK)
	}
	if err != nil {
		return nil, kv.Errorf(kv.CodeNotReady, "snapshot of group %d: %w", p.group, err)
	}
	return reply, nil
}

// statusReply is a reply without rows.
func statusReply(status pullStatus) []byte { return (&pullReply{status: status}).append(nil) }

// openExport takes a snapshot of a group for a peer. An earlier one for the same peer is given up: nobody waits for it.
func (s *Store) openExport(ctx context.Context, from kv.NodeID, p *pullRequest) ([]byte, error) {
	if _, sound := s.Sound(p.group); !sound || s.views.get(p.group) == nil {
		return statusReply(pullGone), nil
	}
	s.exports.drop(func(_ uint64, e *export) bool { return e.group == p.group && e.to == from })
	if !s.exports.reserve(s.cfg.SnapshotSendsMax) {
		return statusReply(pullBusy), nil
	}
	snap, err := s.deps.Engine.SnapshotGroup(p.group)
	if err != nil || snap.Applied().Index < p.least {
		s.exports.release()
		if err != nil {
			return nil, err
		}
		snap.Close()
		return statusReply(pullGone), nil
	}
	e := &export{group: p.group, to: from, snap: snap}
	session, ok := s.exports.add(e)
	if !ok {
		snap.Close()
		return statusReply(pullGone), nil
	}
	return s.readExport(ctx, session, e, nil)
}

// readExport returns the reply with the next rows of a snapshot that is in use, and ends its use. The rows are collected
// in memory that the snapshot keeps, so that a chunk costs one allocation, its reply: what a transfer leaves to the
// collector is memory of the node until it runs.
func (s *Store) readExport(ctx context.Context, session uint64, e *export, after []byte) ([]byte, error) {
	defer s.exports.put(session, e)
	if e.rows == nil {
		e.rows = make([]byte, 0, s.cfg.SnapshotChunkBytes)
	}
	rows, next, err := e.snap.AppendRows(e.rows[:0], after, s.cfg.SnapshotChunkBytes)
	s.Distrust(e.group, err)
	// Nobody is to be given what this replica does not trust itself.
	if _, sound := s.Sound(e.group); !sound || errors.Is(err, storage.ErrSnapshotLost) {
		return statusReply(pullGone), nil
	}
	if err != nil {
		return nil, err
	}
	e.rows = rows
	if err := s.pace.wait(ctx, len(rows)); err != nil {
		return nil, err
	}
	s.metrics.snapshotBytes.WithLabelValues(directionSent).Add(float64(len(rows)))
	reply := pullReply{status: pullOK, session: session, next: next, rows: rows}
	return reply.append(make([]byte, 0, pullReplyBytesMax+len(next)+len(rows))), nil
}

// pace spreads bytes evenly over time.
type pace struct {
	mu        sync.Mutex // guards the fields below
	perSecond int64
	next      time.Time // when the next bytes may go
}

// reserve books the bytes and returns when they may go.
func (p *pace) reserve(n int, now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		p.next = now
	}
	at := p.next
	p.next = at.Add(time.Duration(int64(n) * int64(time.Second) / p.perSecond))
	return at
}

// wait returns once as many bytes may go, or with ctx.
func (p *pace) wait(ctx context.Context, n int) error {
	now := time.Now()
	at := p.reserve(n, now)
	if !at.After(now) {
		return nil
	}
	timer := time.NewTimer(at.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
