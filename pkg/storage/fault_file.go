package storage

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// heldBytesMax bounds what a volatile disk keeps in memory of all files together. A file that would exceed it is
	// written out, unsynced, as a kernel does that runs out of memory.
	heldBytesMax = 64 << 20
	// orphansMax bounds the files that stay open because bytes of them are kept in memory after they were closed.
	orphansMax = 64
)

// faultFile is a file, opened for writing, or a directory of a FaultFS.
//
// Invariant: what is kept in memory follows, in the file, what the base was given: it is written out whole, in the order
// in which it came, before anything else is written.
type faultFile struct {
	vfs.File
	fs *FaultFS
	// log says that the file is a write-ahead log.
	log bool
	// buffers says that a volatile disk may keep bytes of the file in memory.
	buffers bool

	// mu guards what follows, and is held across calls of the base, against Set: Pebble itself writes and syncs a file
	// from one goroutine at a time. Those calls end without waiting for anybody. linger, which may wait, is outside.
	mu     sync.Mutex
	held   []byte
	closed bool  // by its user; the base is open while bytes are held
	failed error // of writing out what was held, which whoever syncs next must learn
	end    int64 // behind the last byte written, held or not
}

// Write implements vfs.File.
func (f *faultFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch mode := f.fs.state.Load().Mode; {
	case mode == DiskFull:
		f.fs.full.Add(1)
		return 0, syscall.ENOSPC
	case mode == DiskError && f.log:
		f.fs.errors.Add(1)
		return 0, syscall.EIO
	case mode == DiskVolatile && f.buffers && f.failed == nil:
		if f.fs.held.Add(int64(len(p))) <= heldBytesMax {
			f.held = append(f.held, p...)
			f.end += int64(len(p))
			f.fs.volatile.Add(1)
			return len(p), nil
		}
		f.fs.held.Add(-int64(len(p)))
	}
	if err := f.writeOut(); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	f.end += int64(n)
	return n, err
}

// writeOut gives the base what is held. The caller holds mu.
func (f *faultFile) writeOut() error {
	if f.failed != nil || len(f.held) == 0 {
		return f.failed
	}
	n := int64(len(f.held))
	if _, err := f.File.Write(f.held); err != nil {
		f.failed = fmt.Errorf("write what was kept in memory: %w", err)
	}
	f.held = nil
	f.fs.held.Add(-n)
	return f.failed
}

// writeBack writes out what is held and, if its user has closed the file, closes it. A failure is met by the next sync,
// as that of a kernel's writing back is.
func (f *faultFile) writeBack() {
	f.mu.Lock()
	held := len(f.held) > 0
	_ = f.writeOut() // kept in failed
	orphan := f.closed && held
	f.mu.Unlock()
	if orphan {
		f.fs.orphans.Add(-1)
		f.fs.forget(f)
		// Nobody is left to be told; whoever cared about these bytes would have synced them.
		_ = f.File.Close()
	}
}

// WriteAt implements vfs.File.
func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.refuseFull(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

// Preallocate implements vfs.File.
func (f *faultFile) Preallocate(offset, length int64) error {
	if err := f.fs.refuseFull(); err != nil {
		return err
	}
	return f.File.Preallocate(offset, length)
}

// Sync implements vfs.File.
func (f *faultFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData implements vfs.File.
func (f *faultFile) SyncData() error { return f.sync(f.File.SyncData) }

// sync writes out what is held and syncs the base, which alone makes it durable.
func (f *faultFile) sync(sync func() error) error {
	f.fs.linger()
	if err := f.prepareSync(); err != nil {
		return err
	}
	return sync()
}

func (f *faultFile) prepareSync() error {
	if f.log && f.fs.state.Load().Mode == DiskError {
		f.fs.errors.Add(1)
		return syscall.EIO
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writeOut()
}

// SyncTo implements vfs.File. Where the base only starts to write, what was held is safe from SIGKILL without having
// been acknowledged, which a power cut may do as well.
func (f *faultFile) SyncTo(length int64) (fullSync bool, err error) {
	if err := f.prepareSync(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

// Read implements vfs.File.
func (f *faultFile) Read(p []byte) (int, error) {
	f.writeBack()
	return f.File.Read(p)
}

// ReadAt implements vfs.File.
func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	f.writeBack()
	return f.File.ReadAt(p, off)
}

// Stat implements vfs.File.
func (f *faultFile) Stat() (vfs.FileInfo, error) {
	fi, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held) > 0 && f.end > fi.Size() {
		return heldInfo{fi, f.end}, nil
	}
	return fi, nil
}

// heldInfo is the description of a file that ends in memory.
type heldInfo struct {
	vfs.FileInfo
	size int64
}

func (h heldInfo) Size() int64 { return h.size }

// Close implements vfs.File. A close makes nothing durable: what is held stays in memory.
func (f *faultFile) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errors.New("storage: file closed twice")
	}
	f.closed = true
	if len(f.held) > 0 && f.fs.orphans.Add(1) > orphansMax {
		f.fs.orphans.Add(-1)
		_ = f.writeOut() // kept in failed
	}
	held, failed := len(f.held) > 0, f.failed
	f.mu.Unlock()
	if held {
		return nil
	}
	if f.buffers {
		f.fs.forget(f)
	}
	return errors.Join(failed, f.File.Close())
}

// faultReader reads a file that was, when it was opened, still known as one being written.
type faultReader struct {
	vfs.File
	writer *faultFile
}

// Read implements vfs.File.
func (r *faultReader) Read(p []byte) (int, error) {
	r.writer.writeBack()
	return r.File.Read(p)
}

// ReadAt implements vfs.File.
func (r *faultReader) ReadAt(p []byte, off int64) (int, error) {
	r.writer.writeBack()
	return r.File.ReadAt(p, off)
}

// Stat implements vfs.File.
func (r *faultReader) Stat() (vfs.FileInfo, error) {
	r.writer.writeBack()
	return r.File.Stat()
}
