package sim

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/caprockdb/caprock/pkg/storage"
)

// syncDelay is how long a sync of a healthy simulated disk takes. With none, everything would be durable the moment that
// it was written, and no crash would fall between.
const syncDelay = 300 * time.Microsecond

// lateFS is a disk whose log takes a while to become durable. A sync must not sleep: Pebble holds mutexes while it waits for
// one, and in a bubble time stands still as long as anybody waits for a mutex. So a sync returns at once and takes effect
// later, and storage waits for that in Settle before it tells anybody.
//
// Only the log is late. What goes by the log's durability, such as the deletion of old ones, has been written to tables by
// then, which are synced at once; a log that is closed is synced at once too.
type lateFS struct {
	vfs.FS
	pace *diskPace

	mu  sync.Mutex // guards due
	due time.Time  // when the last sync that was asked for will have taken effect
}

var _ storage.Settler = (*lateFS)(nil)

func newLateFS(fs vfs.FS, pace *diskPace) *lateFS { return &lateFS{FS: fs, pace: pace} }

// diskPace is how slow a disk is, whoever uses it: it outlasts the lives of its node.
type diskPace struct {
	extra atomic.Int64 // nanoseconds that a sync takes beyond syncDelay
	// slowed counts the syncs that took longer than those of a healthy disk.
	slowed atomic.Uint64
}

// Create implements vfs.FS.
func (l *lateFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, category)
	return l.wrap(f, category), err
}

// ReuseForWrite implements vfs.FS.
func (l *lateFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.ReuseForWrite(oldname, newname, category)
	return l.wrap(f, category), err
}

func (l *lateFS) wrap(f vfs.File, category vfs.DiskWriteCategory) vfs.File {
	if f == nil || category != "pebble-wal" {
		return f
	}
	return &lateFile{File: f, fs: l}
}

// Unwrap implements vfs.FS.
func (l *lateFS) Unwrap() vfs.FS { return l.FS }

// Settle implements storage.Settler.
func (l *lateFS) Settle() {
	l.mu.Lock()
	due := l.due
	l.mu.Unlock()
	// A little later than the timers of that moment.
	time.Sleep(time.Until(due) + time.Microsecond)
}

// later runs sync after the delay.
func (l *lateFS) later(sync func()) {
	extra := time.Duration(l.pace.extra.Load())
	if extra > 0 {
		l.pace.slowed.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	due := time.Now().Add(syncDelay + extra)
	if due.Before(l.due) {
		due = l.due // a sync covers what came before it
	}
	l.due = due
	time.AfterFunc(time.Until(due), sync)
}

// lateFile is a log of a lateFS.
type lateFile struct {
	vfs.File
	fs *lateFS

	mu     sync.Mutex // guards closed
	closed bool
}

// Sync implements vfs.File.
func (f *lateFile) Sync() error { return f.SyncData() }

// SyncData implements vfs.File. The file system below does not fail.
func (f *lateFile) SyncData() error {
	f.fs.later(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed {
			_ = f.File.SyncData()
		}
	})
	return nil
}

// SyncTo implements vfs.File.
func (f *lateFile) SyncTo(int64) (fullSync bool, err error) { return true, f.SyncData() }

// Close implements vfs.File.
func (f *lateFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if err := f.File.SyncData(); err != nil {
		return err
	}
	return f.File.Close()
}
