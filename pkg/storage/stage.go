package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/invariant"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
)

const (
	// stageDir is where tables are built before they are part of the database. What a crash leaves there is of no use:
	// Open empties it.
	stageDir = "staged"
	// stageTableBytes is the size at which a table is closed and another one begun.
	stageTableBytes = 64 << 20
	// categoryStage is what the files are counted under. They are not written through the guard: that a table cannot be
	// built says nothing about the log, and must not stop the engine.
	categoryStage vfs.DiskWriteCategory = "caprock-stage"
)

// stages counts the stages of an engine, which names their files.
type stages struct{ made atomic.Uint64 }

// Stage builds the tables that are to replace a group's rows. It belongs to one goroutine at a time. Nothing of it is
// part of the database before InstallGroup.
type Stage struct {
	e     *Engine
	group kv.GroupID
	name  string
	// paths are the tables made so far, the one being written included.
	paths   []string
	table   *sstable.Writer // nil between two tables
	written int             // bytes in table, roughly
	last    []byte          // the last key added
	key     []byte          // scratch
	applied Applied
	bytes   uint64
}

// NewStage returns an empty stage. It ends with Discard, also after an install.
func (e *Engine) NewStage(g kv.GroupID) *Stage {
	return &Stage{e: e, group: g, name: fmt.Sprintf("%d-%d", g, e.stages.made.Add(1))}
}

// Add adds rows that GroupSnapshot.AppendRows appended. The first is the applied row, and each comes behind the one
// before.
func (s *Stage) Add(rows []byte) error {
	return eachRow(rows, func(suffix, row []byte) error {
		if s.last == nil {
			var err error
			if s.applied, err = appliedOf(s.group, suffix, row); err != nil {
				return err
			}
		}
		s.key = append(appendGroupPrefix(s.key[:0], s.group), suffix...)
		if bytes.Compare(s.key, s.last) <= 0 {
			return corruptRow(s.key, "is out of order in a snapshot")
		}
		if err := verifyRow(row, s.key); err != nil {
			return err
		}
		if mutant.Planted == mutant.SnapshotWithoutDedup && suffix[0] == groupDedup {
			s.last = append(s.last[:0], s.key...)
			return nil
		}
		return s.set(s.key, row)
	})
}

// set adds one row to the table being written.
func (s *Stage) set(key, row []byte) error {
	if s.table != nil && s.written >= stageTableBytes {
		if err := s.closeTable(); err != nil {
			return err
		}
	}
	if s.table == nil {
		if err := s.openTable(); err != nil {
			return err
		}
	}
	if key[groupPrefixBytes] == groupState {
		s.e.noteState(key, rowCovers(row))
	}
	if err := s.table.Set(key, row); err != nil {
		return s.failed(err)
	}
	s.last = append(s.last[:0], key...)
	s.written += len(key) + len(row)
	s.bytes += uint64(len(key) + len(row))
	return nil
}

func (s *Stage) openTable() error {
	fs := s.e.fs
	dir := fs.PathJoin(s.e.dir, stageDir)
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return s.failed(err)
	}
	path := fs.PathJoin(dir, fmt.Sprintf("%s-%d.sst", s.name, len(s.paths)))
	f, err := fs.Create(path, categoryStage)
	if err != nil {
		return s.failed(err)
	}
	s.paths = append(s.paths, path)
	// Written out bit by bit, so that no sync of the log waits behind a whole table.
	f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: s.e.cfg.BytesPerSync})
	o := s.e.options.MakeWriterOptions(len(s.e.options.Levels)-1, s.e.db.TableFormat())
	s.table, s.written = sstable.NewWriter(objstorageprovider.NewFileWritable(f), o), 0
	return nil
}

// closeTable makes the table durable.
func (s *Stage) closeTable() error {
	table := s.table
	s.table = nil
	if err := table.Close(); err != nil {
		return s.failed(err)
	}
	return nil
}

func (s *Stage) failed(err error) error {
	return fmt.Errorf("storage: stage a snapshot of group %d: %s", s.group, oneLine(err))
}

// Finish ends the last table. A stage without rows cannot be finished.
func (s *Stage) Finish() error {
	if s.last == nil {
		return fmt.Errorf("%w: a snapshot of group %d without rows", ErrCorruption, s.group)
	}
	if s.table == nil {
		return nil
	}
	return s.closeTable()
}

// Applied returns up to where the staged state was applied. It is known after the first row.
func (s *Stage) Applied() Applied { return s.applied }

// Bytes returns the size of the rows.
func (s *Stage) Bytes() uint64 { return s.bytes }

// Discard removes what is left of the stage on the disk. What it cannot remove the next Open does.
func (s *Stage) Discard() {
	if s.table != nil {
		_ = s.table.Close()
		s.table = nil
	}
	for _, path := range s.paths {
		_ = s.e.fs.Remove(path)
	}
	s.paths = nil
}

// clearStages removes what a crash left of stages.
func clearStages(dir string, fs FS) error {
	if err := fs.RemoveAll(fs.PathJoin(dir, stageDir)); err != nil {
		return fmt.Errorf("storage: remove %s: %w", fs.PathJoin(dir, stageDir), err)
	}
	return nil
}

// InstallGroup replaces all rows of the staged group, its log included, by the staged ones, the hard state and the
// truncated position: after a crash at any moment either all old rows are there or all new ones. It is durable at return,
// and whatever was applied to the group before it is then gone. The caller applies nothing to the group meanwhile.
//
// After an error that wraps ErrStopped it is not known which rows are there; after any other the old ones are, and the
// same stage may be installed again.
func (e *Engine) InstallGroup(s *Stage, h HardState, truncated causal.Position) error {
	invariant.Check(s.e == e && s.table == nil && s.last != nil, "a finished stage is installed where it was made")
	if err := e.usable(); err != nil {
		return err
	}
	head := &Stage{e: e, group: s.group, name: s.name + "-head"}
	defer head.Discard()
	if err := head.putHead(h, truncated); err != nil {
		return err
	}
	paths := append(append([]string{}, s.paths...), head.paths...)
	if mutant.Planted == mutant.SnapshotNotAtomic {
		paths = s.paths
	}
	start := appendGroupPrefix(nil, s.group)
	e.installs.step(s.group)
	defer e.installs.step(s.group)
	_, err := e.db.IngestAndExcise(context.Background(), paths, nil, nil,
		pebble.KeyRange{Start: start, End: appendPrefixEnd(nil, start)})
	if e.settle != nil {
		e.settle.Settle()
	}
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	if err != nil {
		return fmt.Errorf("storage: install a snapshot of group %d: %s", s.group, oneLine(err))
	}
	if mutant.Planted == mutant.SnapshotNotAtomic {
		b := e.NewBatch()
		defer b.Close()
		b.SetHardState(s.group, h)
		b.SetTruncated(s.group, truncated)
		return e.ApplyNoSync(b)
	}
	return nil
}

// putHead makes a table of the rows that are the replica's own.
func (s *Stage) putHead(h HardState, truncated causal.Position) error {
	seal := func(kind, format byte, payload []byte) error {
		key := appendGroupRow(nil, s.group, kind)
		row := make([]byte, rowBytesMin+len(payload))
		sealRow(row, format, key, payload, nil)
		return s.set(key, row)
	}
	return errors.Join(
		seal(groupHardState, formatHardState, appendHardState(nil, h)),
		seal(groupTruncated, formatTruncated, appendTruncated(nil, truncated)),
		s.Finish(),
	)
}
