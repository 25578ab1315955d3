package storage

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble treats a failed write of its log, its manifest or its directory as the end of the process: it calls
// Logger.Fatalf, panics on the caller's goroutine while it holds its locks, or leaves state half changed, depending on
// where it was. A node has to say why it stops and hand over what it can, so none of that may happen here.
//
// guardedFS therefore stands between Pebble and the disk and keeps such failures to itself. At the first one it trips
// the engine's health and freezes: from then on the disk stays as if the power had been cut at that moment, and Pebble
// is told that all is well, with new files kept in memory. (Tables under way may still grow; nothing will ever refer to
// them.) Nobody is told so besides Pebble: the engine looks at its health after every operation, and answers
// ErrStopped. Because health trips before Pebble learns the result of the failed write, no batch can slip through as
// synced.
//
// Two simpler ways were rejected. Returning from Fatalf lets Pebble go on with a manifest in an unknown state, and
// delete files that the manifest on disk still refers to. Passing the log's errors on ends in a panic during the next
// rotation of the log, with a mutex unlocked twice, which no recover can catch.
type guardedFS struct {
	vfs.FS
	health *health
	// memory holds the files created after the freeze.
	memory *vfs.MemFS
}

func newGuardedFS(fs FS, dir string, h *health) *guardedFS {
	memory := vfs.NewMem()
	// In memory this fails only when a file is in the way, and there are none.
	_ = memory.MkdirAll(dir, 0o755)
	return &guardedFS{FS: fs, health: h, memory: memory}
}

// errFrozen is what Pebble gets after the freeze from the few operations that need not succeed.
var errFrozen = errors.New("storage: the disk is no longer written to")

const (
	categoryWAL        vfs.DiskWriteCategory = "pebble-wal"
	categoryFlush      vfs.DiskWriteCategory = "pebble-memtable-flush"
	categoryCompaction vfs.DiskWriteCategory = "pebble-compaction"
	categoryBlob       vfs.DiskWriteCategory = "pebble-blob-file-rewrite"
)

// isBackground reports whether files of the category are written by flushes and compactions, whose failure Pebble
// survives and repeats.
func isBackground(c vfs.DiskWriteCategory) bool {
	return c == categoryFlush || c == categoryCompaction || c == categoryBlob
}

// Create implements vfs.FS.
func (g *guardedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.create(name, category, func() (vfs.File, error) { return g.FS.Create(name, category) })
}

// ReuseForWrite implements vfs.FS.
func (g *guardedFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return g.create(newname, category, func() (vfs.File, error) {
		return g.FS.ReuseForWrite(oldname, newname, category)
	})
}

func (g *guardedFS) create(
	name string, category vfs.DiskWriteCategory, open func() (vfs.File, error),
) (vfs.File, error) {
	// Pebble repeats a failed flush at once, tens of thousands of times a second. It creates files without holding locks.
	switch {
	case category == categoryFlush:
		g.health.pace(&g.health.flushes)
	case isBackground(category):
		g.health.pace(&g.health.compactions)
	}
	g.orderMarker(name)
	if g.health.stopped() != nil {
		return g.createInMemory(name, category)
	}
	f, err := open()
	switch {
	case isBackground(category):
		return f, err
	case err != nil:
		g.health.trip(fmt.Errorf("create %s: %w", name, err))
		return g.createInMemory(name, category)
	case category == categoryWAL:
		return &guardedFile{File: f, name: name, health: g.health, observeSync: g.health.stats.observeWALSync}, nil
	}
	return &guardedFile{File: f, name: name, health: g.health}, nil
}

// orderMarker syncs the directory before a marker file is created or removed. A marker names the current manifest. Pebble
// creates the manifest, then its marker, removes the old marker, and only then syncs the directory: after a power cut
// the disk may hold a marker whose manifest is missing, so that the directory cannot be opened, or no marker at all,
// so that it looks new.
func (g *guardedFS) orderMarker(name string) {
	if g.health.stopped() != nil || !strings.HasPrefix(g.FS.PathBase(name), "marker.") {
		return
	}
	dir, err := g.OpenDir(g.FS.PathDir(name))
	if err != nil {
		g.health.trip(fmt.Errorf("open the directory of %s: %w", name, err))
		return
	}
	_ = dir.Sync() // a guarded file keeps its failures to itself
	_ = dir.Close()
}

// createInMemory creates a file after the freeze.
func (g *guardedFS) createInMemory(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	// Compactions could fill the memory. They are let through only while a writer waits for them, inside Pebble and
	// holding its locks, because the engine could not be closed otherwise.
	if isBackground(category) && category != categoryFlush && !g.health.stalled.Load() {
		return nil, errFrozen
	}
	return g.memory.Create(name, category)
}

// Open implements vfs.FS.
func (g *guardedFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if g.health.stopped() != nil {
		if f, err := g.memory.Open(name); err == nil {
			return f, nil
		}
	}
	return g.FS.Open(name, opts...)
}

// OpenReadWrite implements vfs.FS.
func (g *guardedFS) OpenReadWrite(
	name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption,
) (vfs.File, error) {
	if g.health.stopped() != nil {
		return nil, errFrozen
	}
	return g.FS.OpenReadWrite(name, category, opts...)
}

// OpenDir implements vfs.FS.
func (g *guardedFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &guardedFile{File: f, name: name, health: g.health}, nil
}

// Stat implements vfs.FS.
func (g *guardedFS) Stat(name string) (vfs.FileInfo, error) {
	if g.health.stopped() != nil {
		if fi, err := g.memory.Stat(name); err == nil {
			return fi, nil
		}
	}
	return g.FS.Stat(name)
}

// Remove implements vfs.FS. After the freeze it does nothing: what is on the disk belongs to the next start.
func (g *guardedFS) Remove(name string) error {
	g.orderMarker(name)
	if g.health.stopped() != nil {
		return nil
	}
	return g.FS.Remove(name)
}

// RemoveAll implements vfs.FS.
func (g *guardedFS) RemoveAll(name string) error {
	if g.health.stopped() != nil {
		return nil
	}
	return g.FS.RemoveAll(name)
}

// Rename implements vfs.FS. Pebble renames only at the end of opening. When that fails it gives up and throws away what
// a compaction needs that it has started by then and does not wait for, which panics on a goroutine of its own. Told
// that all is well it finishes, and Open closes it as it should be.
func (g *guardedFS) Rename(oldname, newname string) error {
	if g.health.stopped() != nil {
		return nil
	}
	if err := g.FS.Rename(oldname, newname); err != nil {
		g.health.trip(fmt.Errorf("rename %s: %w", oldname, err))
	}
	return nil
}

// Link implements vfs.FS.
func (g *guardedFS) Link(oldname, newname string) error {
	if g.health.stopped() != nil {
		return errFrozen
	}
	return g.FS.Link(oldname, newname)
}

// MkdirAll implements vfs.FS.
func (g *guardedFS) MkdirAll(dir string, perm os.FileMode) error {
	if g.health.stopped() != nil {
		return errFrozen
	}
	return g.FS.MkdirAll(dir, perm)
}

// Unwrap implements vfs.FS.
func (g *guardedFS) Unwrap() vfs.FS { return g.FS }

// guardedFile is a file or directory whose write failures are fatal: the log, the manifest, the markers, the directory.
type guardedFile struct {
	vfs.File
	name   string
	health *health
	// observeSync, when set, is told how long each sync took.
	observeSync func(time.Duration)
}

// guard runs a write unless the disk is frozen, and freezes it when the write fails.
func (f *guardedFile) guard(what string, write func() error) {
	if f.health.stopped() != nil {
		return
	}
	f.health.begin(f)
	err := write()
	f.health.end(f)
	if err != nil {
		f.health.trip(fmt.Errorf("%s %s: %w", what, f.name, err))
	}
}

// Write implements vfs.File.
func (f *guardedFile) Write(p []byte) (int, error) {
	f.guard("write", func() error {
		_, err := f.File.Write(p)
		return err
	})
	return len(p), nil
}

// WriteAt implements vfs.File.
func (f *guardedFile) WriteAt(p []byte, off int64) (int, error) {
	f.guard("write", func() error {
		_, err := f.File.WriteAt(p, off)
		return err
	})
	return len(p), nil
}

// Preallocate implements vfs.File. Its failure is not fatal: the write that needs the space will say so.
func (f *guardedFile) Preallocate(offset, length int64) error {
	if f.health.stopped() != nil {
		return nil
	}
	return f.File.Preallocate(offset, length)
}

// Sync implements vfs.File.
func (f *guardedFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData implements vfs.File.
func (f *guardedFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *guardedFile) sync(sync func() error) error {
	// A failed sync is never repeated: the kernel may have dropped the pages and would report success.
	f.guard("sync", func() error {
		start := time.Now()
		err := sync()
		if f.observeSync != nil {
			f.observeSync(time.Since(start))
		}
		return err
	})
	return nil
}

// SyncTo implements vfs.File.
func (f *guardedFile) SyncTo(length int64) (fullSync bool, err error) {
	f.guard("sync", func() (err error) {
		fullSync, err = f.File.SyncTo(length)
		return err
	})
	return fullSync, nil
}

// Stat implements vfs.File. Pebble panics when it cannot learn the size of a log that it reuses.
func (f *guardedFile) Stat() (vfs.FileInfo, error) {
	fi, err := f.File.Stat()
	if err == nil {
		return fi, nil
	}
	f.health.trip(fmt.Errorf("stat %s: %w", f.name, err))
	return vfs.NewMemFile(nil).Stat()
}

// Close implements vfs.File. The file is closed even when the disk is frozen, or descriptors would leak.
func (f *guardedFile) Close() error {
	if err := f.File.Close(); err != nil {
		f.health.trip(fmt.Errorf("close %s: %w", f.name, err))
	}
	return nil
}
