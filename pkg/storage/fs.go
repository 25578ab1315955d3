package storage

import "github.com/cockroachdb/pebble/v2/vfs"

// FS is the filesystem that all durable state goes through.
type FS = vfs.FS

// Settler is implemented by a simulated FS whose syncs of the log take effect later than they return. Whoever waits for a
// sync goes on only after Settle, which returns once every sync asked for before the call has taken effect.
type Settler interface{ Settle() }

// settlerOf finds a Settler among an FS and those that it stands on.
func settlerOf(fs FS) Settler {
	for fs != nil {
		if s, ok := fs.(Settler); ok {
			return s
		}
		fs = fs.Unwrap()
	}
	return nil
}

// DiskFS returns the operating system's filesystem.
func DiskFS() FS { return vfs.Default }

// NewMemFS returns an empty filesystem in memory.
func NewMemFS() FS { return vfs.NewMem() }

// NewCrashableMemFS returns an empty filesystem in memory whose CrashClone shows what a power cut would have left.
func NewCrashableMemFS() *vfs.MemFS { return vfs.NewCrashableMem() }
