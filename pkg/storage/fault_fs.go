package storage

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// DiskMode is a way in which a disk misbehaves.
type DiskMode string

// The modes. DiskHealthy is the zero value.
const (
	DiskHealthy DiskMode = ""
	// DiskFull refuses every write and every new file with ENOSPC, and says that no space is available.
	DiskFull DiskMode = "full"
	// DiskLow only says that no space is available, as a disk does that is about to be full.
	DiskLow DiskMode = "low"
	// DiskError refuses every write and sync of the write-ahead log with EIO. The first of them stops the engine.
	DiskError DiskMode = "error"
	// DiskSlow makes every sync take DiskFault.Delay longer. Not for a synctest bubble, which hangs when a goroutine
	// sleeps in it while others wait for a mutex: Pebble may hold one across a sync. A simulator has a Settler for that.
	DiskSlow DiskMode = "slow"
	// DiskVolatile keeps what is written and not synced in the memory of this process, so that SIGKILL loses it as a
	// power cut would. What changes a directory (create, rename, remove) goes to the disk at once: it is taken as
	// durable.
	DiskVolatile DiskMode = "volatile"
)

// diskDelayMax bounds DiskFault.Delay.
const diskDelayMax = time.Minute

// DiskFault is what is wrong with a disk. The zero value is nothing.
type DiskFault struct {
	Mode DiskMode
	// Delay is what each sync takes longer. Only with DiskSlow, which needs it; up to a minute.
	Delay time.Duration
}

// Validate reports what is wrong with the fault.
func (d DiskFault) Validate() error {
	switch d.Mode {
	case DiskHealthy, DiskFull, DiskLow, DiskError, DiskSlow, DiskVolatile:
	default:
		return fmt.Errorf("unknown disk fault %q: full, low, error, slow or volatile", string(d.Mode))
	}
	switch {
	case d.Mode == DiskSlow && (d.Delay <= 0 || d.Delay > diskDelayMax):
		return fmt.Errorf("a slow disk needs a delay of up to %v, not %v", diskDelayMax, d.Delay)
	case d.Mode != DiskSlow && d.Delay != 0:
		return fmt.Errorf("only a slow disk has a delay")
	}
	return nil
}

// FaultStats counts how often each fault took effect, so that a test can tell that its fault did.
type FaultStats struct {
	Full     uint64 // writes and new files that were refused for want of space
	Low      uint64 // times that the disk said it has no space available, full or low
	Error    uint64 // writes and syncs of the log that failed
	Slow     uint64 // syncs that were slowed down
	Volatile uint64 // writes that were kept in memory
}

// FaultFS is a filesystem that can be told to misbehave, for nodes with a fault injector and for simulations. It lies
// under the guard that stands between Pebble and the disk (guard.go), so that the engine meets a fault as it would meet
// the real one. Without a fault everything passes through.
type FaultFS struct {
	FS
	state atomic.Pointer[faultState]

	full, low, errors, slow, volatile atomic.Uint64
	// held counts the bytes that are kept in memory, of all files.
	held atomic.Int64
	// orphans counts the files that were closed while bytes of them are kept in memory.
	orphans atomic.Int64

	mu sync.Mutex // guards written
	// written holds the files that are open for writing, or closed with bytes that are still kept in memory, by name.
	written map[string]*faultFile
}

// faultState is the fault in force.
type faultState struct {
	DiskFault
	// over is closed when another fault takes this one's place.
	over chan struct{}
}

// NewFaultFS wraps a filesystem. No fault is in force.
func NewFaultFS(base FS) *FaultFS {
	f := &FaultFS{FS: base, written: map[string]*faultFile{}}
	f.state.Store(&faultState{over: make(chan struct{})})
	return f
}

// Set puts a fault in force in place of the one before; the zero value makes the disk healthy. What a volatile disk
// kept in memory has been written when Set returns, unless the new fault is volatile too. The
// fault is not validated.
func (f *FaultFS) Set(d DiskFault) {
	old := f.state.Swap(&faultState{DiskFault: d, over: make(chan struct{})})
	close(old.over)
	if d.Mode != DiskVolatile {
		for _, file := range f.files("") {
			file.writeBack()
		}
	}
}

// Fault returns the fault in force.
func (f *FaultFS) Fault() DiskFault { return f.state.Load().DiskFault }

// Stats returns how often faults took effect since the filesystem was wrapped.
func (f *FaultFS) Stats() FaultStats {
	return FaultStats{
		Full: f.full.Load(), Low: f.low.Load(), Error: f.errors.Load(),
		Slow: f.slow.Load(), Volatile: f.volatile.Load(),
	}
}

// files returns the files that are known under the name or below the directory of that name; all of them for "".
func (f *FaultFS) files(name string) []*faultFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*faultFile
	for n, file := range f.written {
		if name == "" || n == name || strings.HasPrefix(n, name+string(filepath.Separator)) {
			out = append(out, file)
		}
	}
	return out
}

// lookup returns the file that has or had this name while it was written, nil when there is nothing to know about it.
func (f *FaultFS) lookup(name string) *faultFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written[filepath.Clean(name)]
}

// forget drops every name of the file.
func (f *FaultFS) forget(file *faultFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, known := range f.written {
		if known == file {
			delete(f.written, n)
		}
	}
}

// release writes out what is kept in memory of files whose name is about to go away, and forgets the name.
func (f *FaultFS) release(name string) {
	name = filepath.Clean(name)
	for _, file := range f.files(name) {
		file.writeBack()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := range f.written {
		if n == name || strings.HasPrefix(n, name+string(filepath.Separator)) {
			delete(f.written, n)
		}
	}
}

// refuseFull returns ENOSPC while the disk is full.
func (f *FaultFS) refuseFull() error {
	if f.state.Load().Mode != DiskFull {
		return nil
	}
	f.full.Add(1)
	return syscall.ENOSPC
}

// linger takes the time that the fault in force adds to a sync. It holds no lock.
func (f *FaultFS) linger() {
	s := f.state.Load()
	if s.Mode != DiskSlow {
		return
	}
	f.slow.Add(1)
	timer := time.NewTimer(s.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.over:
	}
}

// Create implements vfs.FS.
func (f *FaultFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.refuseFull(); err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	f.release(name)
	return f.wrap(name, category)(f.FS.Create(name, category))
}

// ReuseForWrite implements vfs.FS.
func (f *FaultFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f.release(oldname)
	f.release(newname)
	return f.wrap(newname, category)(f.FS.ReuseForWrite(oldname, newname, category))
}

// wrap returns a function that makes a file to be written from the beginning a faulty one.
func (f *FaultFS) wrap(name string, category vfs.DiskWriteCategory) func(vfs.File, error) (vfs.File, error) {
	return func(base vfs.File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		file := &faultFile{File: base, fs: f, log: category == categoryWAL, buffers: true}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.written[filepath.Clean(name)] = file
		return file, nil
	}
}

// Open implements vfs.FS. Who reads a file of which bytes are kept in memory makes them reach the disk, as a kernel may
// at any time.
func (f *FaultFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	base, err := f.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	if writer := f.lookup(name); writer != nil {
		return &faultReader{File: base, writer: writer}, nil
	}
	return base, nil
}

// OpenReadWrite implements vfs.FS. Pebble uses it for no file of ours, and nothing of such a file is kept in memory.
func (f *FaultFS) OpenReadWrite(
	name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption,
) (vfs.File, error) {
	f.release(name)
	base, err := f.FS.OpenReadWrite(name, category, opts...)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: base, fs: f, log: category == categoryWAL}, nil
}

// OpenDir implements vfs.FS.
func (f *FaultFS) OpenDir(name string) (vfs.File, error) {
	base, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: base, fs: f}, nil
}

// Remove implements vfs.FS.
func (f *FaultFS) Remove(name string) error {
	f.release(name)
	return f.FS.Remove(name)
}

// RemoveAll implements vfs.FS.
func (f *FaultFS) RemoveAll(name string) error {
	f.release(name)
	return f.FS.RemoveAll(name)
}

// Rename implements vfs.FS. What is kept in memory goes with the file.
func (f *FaultFS) Rename(oldname, newname string) error {
	f.release(newname)
	if err := f.FS.Rename(oldname, newname); err != nil {
		return err
	}
	oldname, newname = filepath.Clean(oldname), filepath.Clean(newname)
	f.mu.Lock()
	defer f.mu.Unlock()
	if file, ok := f.written[oldname]; ok {
		delete(f.written, oldname)
		f.written[newname] = file
	}
	return nil
}

// Link implements vfs.FS.
func (f *FaultFS) Link(oldname, newname string) error {
	if err := f.FS.Link(oldname, newname); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if file, ok := f.written[filepath.Clean(oldname)]; ok {
		f.written[filepath.Clean(newname)] = file
	}
	return nil
}

// Stat implements vfs.FS.
func (f *FaultFS) Stat(name string) (vfs.FileInfo, error) {
	if writer := f.lookup(name); writer != nil {
		writer.writeBack()
	}
	return f.FS.Stat(name)
}

// totalUnknown is the size of a disk of which nobody can tell it, in memory say, while it is full or low.
const totalUnknown = 1 << 40

// GetDiskUsage implements vfs.FS.
func (f *FaultFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	u, err := f.FS.GetDiskUsage(path)
	if mode := f.state.Load().Mode; mode != DiskFull && mode != DiskLow {
		return u, err
	}
	f.low.Add(1)
	if err != nil || u.TotalBytes == 0 {
		u.TotalBytes = totalUnknown
	}
	u.AvailBytes, u.UsedBytes = 0, u.TotalBytes
	return u, nil
}

// Unwrap implements vfs.FS.
func (f *FaultFS) Unwrap() vfs.FS { return f.FS }
