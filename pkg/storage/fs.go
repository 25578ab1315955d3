package storage

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the filesystem that all durable state goes through.
type FS = vfs.FS

// DiskFS returns the operating system's filesystem.
func DiskFS() FS { return vfs.Default }

// NewMemFS returns an empty filesystem in memory.
func NewMemFS() FS { return vfs.NewMem() }

// NewCrashableMemFS returns an empty filesystem in memory whose CrashClone shows what a power cut would have left.
func NewCrashableMemFS() *vfs.MemFS { return vfs.NewCrashableMem() }
