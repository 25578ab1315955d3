package client

import (
	"crypto/rand"
	"sync"
	"sync/atomic"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

const (
	// sessionCount is the number of sessions of a client. A partition's group keeps the outcomes of a session from its floor
	// on, so that a write which hangs must not hold up the floor for other partitions. Sessions divide the keys as partitions
	// do, only more coarsely where there are more partitions.
	sessionCount = 16
	// overMax bounds the writes of a session that ended while an earlier one goes on. Beyond it the earlier ones are no longer
	// waited for: if one of them is sent again, it will not be applied and its outcome stays unknown.
	overMax = 4096

	// sessionMark begins the name of every client's sessions. No Idempotency-Key can begin with it.
	sessionMark = 0
	// clientBytes is the length of the random part of their names.
	clientBytes = 8
)

// session numbers the strong writes on a part of the keys, and knows below which number none of them goes on.
type session struct {
	name  []byte
	floor atomic.Uint64 // written under mu

	mu   sync.Mutex // guards what follows
	next uint64
	over map[uint64]struct{} // numbers above floor that have ended
}

// newSessions gives a client its sessions. Their name comes from the system's own source and not from Deps.Rand: of two clients
// with one name the second's writes would be taken for repetitions of the first's, and a seed is easily used twice.
func newSessions() []*session {
	client := make([]byte, clientBytes)
	_, _ = rand.Read(client) // it never fails
	out := make([]*session, sessionCount)
	for i := range out {
		name := append(append([]byte{sessionMark}, client...), byte(i))
		out[i] = &session{name: name, over: make(map[uint64]struct{})}
	}
	return out
}

// begin gives the write a number.
func (s *session) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.next
	s.next++
	return n
}

// end says that nobody waits for the write any more.
func (s *session) end(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	floor := s.floor.Load()
	if n < floor {
		return
	}
	s.over[n] = struct{}{}
	if len(s.over) > overMax {
		for !s.ended(floor) {
			floor++
		}
	}
	for s.ended(floor) {
		delete(s.over, floor)
		floor++
	}
	s.floor.Store(floor)
}

func (s *session) ended(n uint64) bool {
	_, ok := s.over[n]
	return ok
}

// name gives a write that may be strong an id, so that it can be sent again when its outcome is unknown. A caller's own
// id stays.
func (c *Client) name(op *call) {
	r := &op.op.Request
	if !r.Op.IsWrite() || !r.ID.IsZero() || (r.Level != kv.LevelStrong && r.Level != kv.LevelUnset) {
		return
	}
	op.session = c.sessions[ring.PartitionOf(r.Key, sessionCount)]
	r.ID = kv.OpID{Session: op.session.name, Sequence: op.session.begin()}
}

// id is the operation's id as the next attempt carries it. Once an attempt may have been applied, the operation must not
// run at a level that does not recognise it.
func (c *call) id() kv.OpID {
	id := c.op.Request.ID
	if c.session != nil {
		id.Floor = min(c.session.floor.Load(), id.Sequence)
		id.Required = c.unsure.Load()
	}
	return id
}
