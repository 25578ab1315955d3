package consensus

import (
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// logStore is the durable log of one group as Raft reads it, and the loop writes it. The newest entries and everything
// Raft asks for often is in memory; nothing ever loads the whole log.
//
// It shows entries from the moment the loop has put them into a batch. That is sound because Raft, which knows what is
// still being synced, never asks for those.
type logStore struct {
	group kv.GroupID
	log   storage.Log
	win   window

	// hard is Raft's latest. saved is what was last put into a batch: a commit index alone is not worth a row, as it is
	// never below what is applied, and that is on disk.
	hard, saved storage.HardState
	conf        *pb.ConfState
	// applied is the position that the group's machine had reached when the log was opened.
	applied causal.Position
	// state returns the position that it has reached, and the configuration there; nil refuses to. It is what a snapshot
	// would hold.
	state func() (causal.Position, *pb.ConfState)
	size  logSize
	// truncated is the position before the first entry; last is the newest entry, or truncated when there is none.
	truncated, last causal.Position

	// err is the first failure to read. Raft answers one by panicking; the loop finds the cause here.
	err error
}

var _ raft.Storage = (*logStore)(nil)

// openLog reads a group's state and checks that its rows fit together, because Raft would panic where they do not.
func openLog(g kv.GroupID, log storage.Log, windowBytes int, sizeGrain uint64) (*logStore, error) {
	s := &logStore{group: g, log: log, win: window{bytesMax: windowBytes}, size: logSize{grain: sizeGrain}}
	hard, hasHard, err := log.HardState(g)
	if err != nil {
		return nil, err
	}
	truncated, hasTruncated, err := log.Truncated(g)
	if err != nil {
		return nil, err
	}
	applied, hasApplied, err := log.Applied(g)
	if err != nil {
		return nil, err
	}
	if !hasHard || !hasTruncated || !hasApplied {
		return nil, s.corrupt("its rows are incomplete (hard state %t, truncated %t, applied %t)",
			hasHard, hasTruncated, hasApplied)
	}
	last, hasLast, err := log.LastEntry(g)
	if err != nil {
		return nil, err
	}
	if !hasLast || last.Index < truncated.Index {
		last = truncated
	}
	if s.conf, err = decodeConfRow(applied.ConfState); err != nil {
		return nil, s.corrupt("its configuration: %v", err)
	}
	s.truncated, s.last = truncated, last
	s.applied = causal.Position{Term: applied.Term, Index: applied.Index}
	s.saved = hard
	hard.Commit = max(hard.Commit, applied.Index)
	s.hard = hard
	if hard.Commit > last.Index || applied.Index < truncated.Index {
		return nil, s.corrupt("truncated %d <= applied %d <= commit %d <= last %d does not hold",
			truncated.Index, applied.Index, hard.Commit, last.Index)
	}
	if err := log.Sizes(g, s.size.add); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *logStore) corrupt(format string, args ...any) error {
	return fmt.Errorf("group %d: %w: %s", s.group, storage.ErrCorruption, fmt.Sprintf(format, args...))
}

// InitialState implements raft.Storage.
func (s *logStore) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return &pb.HardState{Term: new(s.hard.Term), Vote: new(s.hard.Vote), Commit: new(s.hard.Commit)}, s.conf, nil
}

// FirstIndex implements raft.Storage.
func (s *logStore) FirstIndex() (uint64, error) { return s.truncated.Index + 1, nil }

// LastIndex implements raft.Storage.
func (s *logStore) LastIndex() (uint64, error) { return s.last.Index, nil }

// Term implements raft.Storage.
func (s *logStore) Term(i uint64) (uint64, error) {
	switch {
	case i == s.last.Index:
		return s.last.Term, nil
	case s.win.has(i):
		return s.win.term(i), nil
	case i == s.truncated.Index:
		return s.truncated.Term, nil
	case i < s.truncated.Index:
		return 0, raft.ErrCompacted
	case i > s.last.Index:
		return 0, raft.ErrUnavailable
	}
	term, found, err := s.log.Term(s.group, i)
	if err == nil && !found {
		err = s.corrupt("entry %d is missing between %d and %d", i, s.truncated.Index, s.last.Index)
	}
	if err != nil {
		return 0, s.failed(err)
	}
	return term, nil
}

// Entries implements raft.Storage. What straddles the window is cut there: Raft takes a short answer for one that
// reached its size limit, and asks again.
func (s *logStore) Entries(lo, hi, maxBytes uint64) ([]*pb.Entry, error) {
	switch {
	case lo <= s.truncated.Index:
		return nil, raft.ErrCompacted
	case hi > s.last.Index+1:
		return nil, raft.ErrUnavailable
	case lo == hi:
		return nil, nil
	case s.win.has(lo):
		return s.win.slice(lo, hi, maxBytes), nil
	case len(s.win.entries) > 0 && hi > s.win.first:
		hi = s.win.first
	}
	rows, err := s.log.Entries(s.group, lo, hi, maxBytes)
	if err == nil && len(rows) == 0 {
		err = s.corrupt("entry %d is missing between %d and %d", lo, s.truncated.Index, s.last.Index)
	}
	if err != nil {
		return nil, s.failed(err)
	}
	return entriesFromRows(rows), nil
}

// Snapshot implements raft.Storage. It returns metadata only: the follower that gets it comes for the data, and gets
// them as of the moment at which it comes.
func (s *logStore) Snapshot() (*pb.Snapshot, error) {
	if s.state == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	pos, conf := s.state()
	if conf == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return snapshotAt(pos, conf), nil
}

// snapshotAt makes a snapshot's metadata as Raft wants it.
func snapshotAt(pos causal.Position, conf *pb.ConfState) *pb.Snapshot {
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: new(pos.Index), Term: new(pos.Term), ConfState: proto.Clone(conf).(*pb.ConfState),
	}}
}

func (s *logStore) failed(err error) error {
	if s.err == nil {
		s.err = err
	}
	return err
}

// note takes over Raft's hard state.
func (s *logStore) note(hard *pb.HardState) {
	if !raft.IsEmptyHardState(hard) {
		s.hard = storage.HardState{Term: hard.GetTerm(), Vote: hard.GetVote(), Commit: hard.GetCommit()}
	}
}

// promised reports whether the hard state holds a term or a vote that no batch has.
func (s *logStore) promised() bool { return s.hard.Term != s.saved.Term || s.hard.Vote != s.saved.Vote }

// persist puts into the batch what one append message asks for: entries, which replace whatever is there from the
// first of them on, and the hard state where it promises something new.
func (s *logStore) persist(b *storage.Batch, entries []*pb.Entry) {
	if s.promised() {
		s.saved = s.hard
		row := s.hard
		if mutant.Planted == mutant.VoteNotPersisted {
			row.Vote = 0
		}
		b.SetHardState(s.group, row)
	}
	if len(entries) == 0 {
		return
	}
	for _, e := range entries {
		b.AppendEntry(s.group, storage.LogEntry{
			Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.GetData(),
		})
	}
	end := entries[len(entries)-1]
	if end.GetIndex() < s.last.Index {
		b.DeleteEntriesFrom(s.group, end.GetIndex()+1)
	}
	if first := entries[0].GetIndex(); first <= s.last.Index {
		s.size.cutSuffix(first)
	}
	for _, e := range entries {
		s.size.add(e.GetIndex(), uint64(entryBytes(e)))
	}
	s.last = causal.Position{Term: end.GetTerm(), Index: end.GetIndex()}
	s.win.append(entries)
}

// holds reports whether the log has an entry of that index and term.
func (s *logStore) holds(index, term uint64) bool {
	if index < s.truncated.Index || index > s.last.Index {
		return false
	}
	own, err := s.Term(index)
	return err == nil && own == term
}

// truncate drops, in the batch, the entries up to the position. They must have been applied. The window keeps what it
// has: it is bounded, and nobody asks it for them.
func (s *logStore) truncate(b *storage.Batch, through causal.Position) {
	b.TruncateLog(s.group, s.truncated.Index, through)
	s.truncated = through
	s.size.cutPrefix(through.Index)
}

// reset makes the log that of a replica in which a snapshot was installed: empty, behind the position.
func (s *logStore) reset(pos causal.Position, hard storage.HardState, conf *pb.ConfState) {
	s.hard, s.saved, s.conf, s.truncated, s.last, s.applied = hard, hard, conf, pos, pos, pos
	s.win = window{bytesMax: s.win.bytesMax}
	s.size.clear()
}

func entriesFromRows(rows []storage.LogEntry) []*pb.Entry {
	mem := make([]entryMemory, len(rows))
	out := make([]*pb.Entry, len(rows))
	for i, row := range rows {
		m := &mem[i]
		m.term, m.index, m.typ = row.Term, row.Index, pb.EntryType(row.Type)
		m.entry.Term, m.entry.Index, m.entry.Type = &m.term, &m.index, &m.typ
		m.entry.Data = row.Data
		out[i] = &m.entry
	}
	return out
}
