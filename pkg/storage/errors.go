package storage

import "errors"

var (
	// ErrCorruption is returned when something read from the disk is not what was written: a row that is missing its
	// checksum, is too short, has an unknown format, or lies in a block that Pebble refuses. The replica that holds it
	// must not answer with it.
	ErrCorruption = errors.New("storage: corruption")
	// ErrStopped is returned by every operation once the write-ahead log or the manifest could not be written. Whether
	// a write that met it is durable is not known. The engine has to be closed and opened again.
	ErrStopped = errors.New("storage: stopped after a disk failure")
	// ErrDegraded is wrapped by what Engine.Degraded returns: flushes or compactions fail again and again.
	ErrDegraded = errors.New("storage: the disk refuses background writes")
	// ErrLocked is returned by Open when the directory is in use.
	ErrLocked = errors.New("storage: the data directory is in use")
	// ErrFormat is returned by Open for a directory that this version of Caprock cannot read, or that is not its own.
	ErrFormat = errors.New("storage: unknown format")
	// ErrClosed is returned by operations on an engine that was closed.
	ErrClosed = errors.New("storage: closed")
	// ErrTruncated is returned by Log.Entries when entries asked for lie at or below the truncated position.
	ErrTruncated = errors.New("storage: log entries are truncated")
	// ErrNotFound is returned for a snapshot of a group that has no rows.
	ErrNotFound = errors.New("storage: not found")
	// ErrSnapshotLost is returned by a snapshot of a group whose rows have been replaced since it was taken.
	ErrSnapshotLost = errors.New("storage: the group's rows were replaced while a snapshot was read")
	// ErrBatchTooLarge is returned when a batch above batchBytesMax is applied. Nothing of it was written.
	ErrBatchTooLarge = errors.New("storage: batch too large")
)
