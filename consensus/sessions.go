package consensus

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// What a group remembers of the operations that it has applied, so that a repetition is answered and not applied again.
//
// There is one row a session, not one an operation: a client that has sixty writes in an entry costs one read and one
// write, where a row an operation would make every put three. The row holds the replies of the session's operations from
// its floor on, which is what the client still waits for.
//
// Time comes in eras of five minutes that only rise (groupClock says how they are told), and a session's row lies under the
// era in which it was last written. The eras that are no longer kept are removed whole, by one range, when the next one
// begins; an index of sessions by time would have to be written, scanned past what was removed from it, and cleaned.
const (
	// erasKept are the eras whose sessions are known: the present one and three that are over, so that whatever was
	// written is known for at least fifteen minutes.
	erasKept = 4

	// sessionRecordsMax bounds what is kept of one session. Beyond it the floor rises: a client with more writes under way
	// in one partition may find an outcome unknown that would have been known.
	sessionRecordsMax = 1024

	sessionFormat byte = 1
)

// dedupRows is where a group's dedup rows are read.
type dedupRows interface {
	Dedup(g kv.GroupID, opID []byte) (row []byte, found bool, err error)
}

// Rows, within the group's dedup rows.
const (
	dedupClock   byte = 0 // the group's clock
	dedupSession byte = 1 // era, session
)

// opRecord is one operation that was applied.
type opRecord struct {
	sequence, fingerprint uint64
	reply                 []byte
}

// session is what a row says.
type session struct {
	name []byte
	// floor is the number below which operations are neither known nor applied any more.
	floor uint64
	// records are in the order of their sequence numbers, none of which lies below floor.
	records []opRecord
	// era is that of the row that was read; meaningless unless found.
	era   uint64
	found bool
	// changed is set once an operation was added, until the row was written.
	changed bool
	// rowBytes is the size of the row that was read, and size what the session counts for in the memory.
	rowBytes, size int
}

// recall returns the reply to a command that was applied before, or that must not be applied.
func (s *session) recall(c *command) (reply WriteReply, known bool, err error) {
	i, found := s.search(c.ID.Sequence)
	switch {
	case found && mutant.Planted == mutant.NoDedup:
		return WriteReply{}, false, nil
	case found && s.records[i].fingerprint != c.fingerprint:
		return WriteReply{Refused: RefusedReuse}, true, nil
	case found:
		reply, err := decodeReply(s.records[i].reply)
		return reply, true, err
	case c.ID.Sequence < s.floor:
		return WriteReply{Refused: RefusedForgotten}, true, nil
	}
	return WriteReply{}, false, nil
}

func (s *session) search(sequence uint64) (int, bool) {
	return slices.BinarySearchFunc(s.records, sequence, func(r opRecord, n uint64) int { return cmp.Compare(r.sequence, n) })
}

// remember adds an operation that was not known.
func (s *session) remember(c *command, reply WriteReply) {
	r := opRecord{sequence: c.ID.Sequence, fingerprint: c.fingerprint, reply: appendReply(nil, &reply)}
	i, found := s.search(r.sequence)
	if found {
		s.records[i] = r
	} else {
		s.records = slices.Insert(s.records, i, r)
	}
	s.floor = max(s.floor, c.ID.Floor)
	if excess := len(s.records) - sessionRecordsMax; excess > 0 {
		s.floor = max(s.floor, s.records[excess].sequence)
	}
	below, _ := s.search(s.floor)
	s.records = s.records[below:]
}

const (
	// memoryBytesMax bounds a group's memory, roughly.
	memoryBytesMax = 1 << 20
	// sessionOverhead is what a session takes there beside its row and twice its name: most sessions, those of
	// Idempotency-Keys, have a single operation, and a row of some forty bytes.
	sessionOverhead = 256
)

// memory is what a group's machine keeps of its dedup rows, so that an entry need not read them: both the clock and a busy
// session have had so many versions of late that finding the latest was a tenth of the lane's CPU. It never holds anything
// that storage does not, and may forget anything at any time.
type memory struct {
	clock groupClock
	// read says that clock was read, found that there is one.
	read, found bool
	byName      map[string]*session
	bytes       int // that the sessions count for
}

// keep notes that a session was read or written, as a row of the size.
func (m *memory) keep(s *session, row int) {
	size := row + 2*len(s.name) + sessionOverhead
	m.bytes += size - s.size
	s.size = size
}

// trim forgets sessions, whichever, until the rest is within the bound.
func (m *memory) trim() {
	for name, s := range m.byName {
		if m.bytes <= memoryBytesMax {
			return
		}
		m.bytes -= s.size
		delete(m.byName, name)
	}
}

// sessions are those that one entry needs. Commands of an entry see what those before them did here, so that an entry
// which holds one operation twice applies it once.
type sessions struct {
	*memory
	state storage.State
	group kv.GroupID
	// clock is the group's after the entry, and before what it was before. clockMoved says that it has to be written.
	clock, before groupClock
	clockMoved    bool
	opened        bool
	changed       []*session
}

// open looks at the group's clock. Nothing is read for an entry whose commands have no ids.
func (t *sessions) open(e Committed) (err error) {
	if t.opened {
		return nil
	}
	if !t.read {
		if t.memory.clock, t.found, err = readGroupClock(t.state, t.group); err != nil {
			return err
		}
		t.read, t.byName = true, make(map[string]*session)
	}
	t.before = t.memory.clock
	t.clock, t.clockMoved = t.before.after(e)
	t.clockMoved = t.clockMoved || !t.found
	t.opened = true
	return nil
}

// find returns the session, a new one when the group does not know it, or does not any more.
func (t *sessions) find(name []byte) (*session, error) {
	s := t.byName[string(name)]
	if s != nil && (!s.found || t.clock.era-s.era < erasKept) {
		return s, nil
	}
	if s != nil {
		t.bytes -= s.size
		delete(t.byName, string(name))
	}
	s, err := readSession(t.state, t.group, name, t.clock.era)
	if err != nil {
		return nil, err
	}
	t.keep(s, s.rowBytes)
	t.byName[string(name)] = s
	return s, nil
}

// remember adds an operation that was not known.
func (t *sessions) remember(s *session, c *command, reply WriteReply) {
	if !s.changed {
		s.changed = true
		t.changed = append(t.changed, s)
	}
	s.remember(c, reply)
}

// write adds what changed to the batch.
func (t *sessions) write(b *storage.Batch) {
	var key, row []byte
	for _, s := range t.changed {
		if s.found && s.era != t.clock.era {
			b.DeleteDedup(t.group, appendSessionKey(nil, s.era, s.name))
		}
		key, row = appendSessionKey(key[:0], t.clock.era, s.name), appendSession(row[:0], s)
		b.SetDedup(t.group, key, row)
		s.era, s.found, s.changed = t.clock.era, true, false
		t.keep(s, len(row))
	}
	if t.opened {
		t.trim()
	}
	if !t.clockMoved {
		return
	}
	t.memory.clock, t.found = t.clock, true
	b.SetDedup(t.group, []byte{dedupClock}, t.clock.encode())
	if t.clock.era != t.before.era && t.clock.era >= erasKept {
		b.DeleteDedupRange(t.group, appendSessionKey(nil, 0, nil), appendSessionKey(nil, t.clock.era-erasKept+1, nil))
	}
}

// readSession looks for the session's row under the eras that are kept, the latest first.
func readSession(rows dedupRows, g kv.GroupID, name []byte, era uint64) (*session, error) {
	for back := uint64(0); back < erasKept && back <= era; back++ {
		if s, err := readSessionAt(rows, g, name, era-back); s != nil || err != nil {
			return s, err
		}
	}
	return &session{name: slices.Clone(name)}, nil
}

// readSessionAt returns the session's row under one era, nil when there is none.
func readSessionAt(rows dedupRows, g kv.GroupID, name []byte, era uint64) (*session, error) {
	row, found, err := rows.Dedup(g, appendSessionKey(nil, era, name))
	if err != nil || !found {
		return nil, err
	}
	s, err := decodeSession(row)
	if err != nil {
		return nil, fmt.Errorf("session %x of group %d: %w", name, g, err)
	}
	s.name, s.era, s.found, s.rowBytes = slices.Clone(name), era, true, len(row)
	return s, nil
}

func appendSessionKey(dst []byte, era uint64, name []byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(dst, dedupSession), era), name...)
}

func appendSession(dst []byte, s *session) []byte {
	dst = append(dst, sessionFormat)
	dst = binary.AppendUvarint(dst, s.floor)
	dst = binary.AppendUvarint(dst, uint64(len(s.records)))
	for i := range s.records {
		r := &s.records[i]
		dst = binary.AppendUvarint(dst, r.sequence)
		dst = binary.LittleEndian.AppendUint64(dst, r.fingerprint)
		dst = appendBytes(dst, r.reply)
	}
	return dst
}

// decodeSession reads a row, which the session then aliases.
func decodeSession(b []byte) (*session, error) {
	r := reader{b: b}
	if f := r.byte("session format"); r.err == nil && f != sessionFormat {
		return nil, fmt.Errorf("%w: unknown session format %d", ErrUnreadable, f)
	}
	s := &session{floor: r.uvarint("floor")}
	n := r.count("operations")
	s.records = make([]opRecord, n)
	for i := range s.records {
		s.records[i] = opRecord{sequence: r.uvarint("sequence"), fingerprint: r.uint64("fingerprint"), reply: r.bytes("reply")}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after a session:")
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return s, nil
}

// Flags of a stored reply.
const (
	replyApplied byte = 1 << iota
	replyFound
	replyItems // a batch that was applied
	replyMissed
	replyFlags = replyApplied | replyFound | replyItems | replyMissed
)

// appendReply appends what a repetition will be answered.
func appendReply(dst []byte, w *WriteReply) []byte {
	invariant.Check(w.Refused == NotRefused, "a refusal is not remembered")
	var flags byte
	if w.Applied {
		flags |= replyApplied
	}
	if w.Found {
		flags |= replyFound
	}
	if len(w.Items) > 0 {
		flags |= replyItems
	}
	if w.Missed > 0 {
		flags |= replyMissed
	}
	dst = binary.AppendUvarint(append(dst, flags), w.Revision)
	if w.Applied {
		dst = causal.AppendStamp(dst, w.Stamp)
	}
	if w.Missed > 0 {
		dst = binary.AppendUvarint(dst, uint64(w.Missed))
	}
	if len(w.Items) == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(len(w.Items)))
	for _, found := range w.Items {
		var one byte
		if found {
			one = 1
		}
		dst = append(dst, one)
	}
	return dst
}

func decodeReply(b []byte) (WriteReply, error) {
	r := reader{b: b}
	flags := r.byte("flags")
	if flags&^replyFlags != 0 {
		r.fail("flags")
	}
	w := WriteReply{Applied: flags&replyApplied != 0, Found: flags&replyFound != 0, Revision: r.uvarint("revision"), Repeated: true}
	if r.err == nil && w.Applied {
		w.Stamp, r.b, r.err = causal.DecodeStamp(r.b)
	}
	if flags&replyMissed != 0 {
		w.Missed = int(r.bounded("missed", kv.BatchItemsMax))
	}
	if flags&replyItems != 0 {
		w.Items = make([]bool, r.count("items"))
		for i := range w.Items {
			w.Items[i] = r.byte("item") != 0
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after a reply:")
	}
	if r.err != nil {
		return WriteReply{}, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return w, nil
}
