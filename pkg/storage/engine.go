package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Engine is the storage of one node. Its methods may be called from any goroutine; Close only once nobody else uses it.
type Engine struct {
	dir    string
	cfg    Config
	fs     FS // as given, without the guard
	db     *pebble.DB
	lock   *pebble.Lock
	health *health
	stats  *stats
	settle Settler // nil on a real disk

	batches sync.Pool // *Batch
	keys    sync.Pool // *keyBuffer

	// options are Pebble's, with its defaults, for tables that this package builds itself.
	options  *pebble.Options
	stages   stages
	trees    trees
	installs installCounts
	absence  *absence
	covering *absence
	recent   *recent

	closed   atomic.Bool
	pressure pressureGauge
	nudging  sync.WaitGroup
}

// Open opens the storage in the directory, which is created if it is not there. Errors are one line that says what to
// do: ErrLocked when another process holds the directory, ErrFormat for one that this version cannot read, ErrCorruption
// when the log or the manifest is damaged.
func Open(dir string, cfg Config, deps Deps) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.FS == nil {
		deps.FS = DiskFS()
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if vfs.Root(deps.FS) == vfs.Default {
		// The operating system's lock is per process: two spellings of one directory must meet at one name.
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("storage: data directory %q: %w", dir, err)
		}
		dir = abs
	}
	if err := deps.FS.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("storage: cannot create the data directory %s (check the path and its permissions): %w", dir, err)
	}
	lock, err := lockDir(dir, deps.FS)
	if err != nil {
		return nil, err
	}
	e, err := openLocked(dir, cfg, deps, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return e, nil
}

// OpenInMemory opens an empty engine in memory, small enough to have many of: for tests and simulations.
func OpenInMemory() (*Engine, error) {
	cfg := DefaultConfig()
	cfg.CacheBytes, cfg.MemtableBytes = 8<<20, 4<<20
	return Open("data", cfg, Deps{FS: NewMemFS()})
}

// lockDir takes the directory's lock. It is taken here and not left to Pebble so that a lock that is held can be told
// from other reasons why the directory cannot be used.
func lockDir(dir string, fs FS) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(dir, fs)
	if err == nil {
		return lock, nil
	}
	if isLockHeld(err) {
		return nil, fmt.Errorf("%w: %s; stop the process that uses it, or give this one a directory of its own", ErrLocked, dir)
	}
	return nil, fmt.Errorf("storage: cannot lock the data directory %s (check its permissions): %w", dir, err)
}

func openLocked(dir string, cfg Config, deps Deps, lock *pebble.Lock) (*Engine, error) {
	if err := clearStages(dir, deps.FS); err != nil {
		return nil, err
	}
	st := newStats()
	h := newHealth(deps.Logger, st, deps.OnFatal)
	opts := cfg.options()
	opts.FS = newGuardedFS(deps.FS, dir, h)
	opts.Lock = lock
	opts.Logger = pebbleLogger{log: deps.Logger, health: h}
	opts.EventListener = h.listener()

	if _, err := pebble.Peek(dir, deps.FS); err != nil {
		return nil, peekError(dir, err)
	}
	db, err := pebble.Open(dir, opts)
	if stopped := h.stopped(); stopped != nil {
		if db != nil {
			h.close()
			_ = db.Close() // it says the same again
		}
		return nil, stopped
	}
	if err != nil {
		return nil, openError(dir, err)
	}
	e := &Engine{dir: dir, cfg: cfg, fs: deps.FS, db: db, lock: lock, health: h, stats: st, settle: settlerOf(deps.FS)}
	e.absence, e.covering = newAbsence(cfg.CacheBytes), newAbsence(cfg.CacheBytes/coveringShare)
	e.recent = newRecent(cfg.CacheBytes)
	e.options = cfg.options()
	e.options.EnsureDefaults()
	e.pressure.since = time.Now()
	e.batches.New = func() any { return new(Batch) }
	e.keys.New = func() any { return new(keyBuffer) }
	if err = e.checkLayout(); err == nil {
		err = e.loadTrees()
	}
	if err == nil {
		err = st.register(deps.Registerer, e)
	}
	if err != nil {
		h.close()
		return nil, errors.Join(err, db.Close())
	}
	if stopped := h.arm(); stopped != nil {
		st.unregister()
		h.close()
		_ = db.Close()
		return nil, stopped
	}
	e.nudging.Go(e.nudge)
	e.nudging.Go(func() { e.fillAbsence(h.closing) })
	return e, nil
}

// nudgeInterval is how often Pebble is made to look for compactions while they fail or while a writer waits for them.
const nudgeInterval = time.Second

// nudge makes Pebble pick compactions again while background work is in trouble. Pebble looks for one when a flush or a
// compaction ends. With a writer stalled on level 0 there are no flushes, and a compaction that failed, for want of
// space say, is not picked again for 30 seconds, at the end of which nobody looks: writes would stall for ever.
func (e *Engine) nudge() {
	for {
		select {
		case <-e.health.closing:
			return
		case <-e.health.nudge:
		}
		for e.health.troubled() {
			timer := time.NewTimer(nudgeInterval)
			select {
			case <-e.health.closing:
				timer.Stop()
				return
			case <-timer.C:
			}
			// Closing the oldest snapshot is the one way to make it look that needs no lock a stalled writer holds.
			_ = e.db.NewSnapshot().Close() // it cannot fail
		}
	}
}

// peekError says why the directory was refused before it was opened.
func peekError(dir string, err error) error {
	if msg := oneLine(err); strings.Contains(msg, "format major version") {
		return fmt.Errorf("%w: %s was written by another version; start the version of Caprock that wrote it: %s",
			ErrFormat, dir, msg)
	}
	return openError(dir, err)
}

// openError says why the directory could not be opened.
func openError(dir string, err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %s cannot be opened; move it away and let this node come back as a new one: %s",
			ErrCorruption, dir, oneLine(err))
	}
	return fmt.Errorf("storage: cannot open %s: %s", dir, oneLine(err))
}

// Close closes the storage and releases its directory. Every scan must have returned and every batch must be closed or
// given up; a leaked one is an error.
func (e *Engine) Close() error {
	if e.closed.Swap(true) {
		return ErrClosed
	}
	e.stats.unregister()
	e.health.close()
	e.nudging.Wait()
	err := e.db.Close()
	if e.health.stopped() != nil {
		// The disk failed earlier and that was reported then; what Pebble adds now are its consequences.
		err = nil
	}
	return errors.Join(err, e.lock.Close())
}

// usable returns why the engine cannot be used, if it cannot.
func (e *Engine) usable() error {
	if e.closed.Load() {
		return ErrClosed
	}
	return e.health.stopped()
}

// Waiting returns for how long the disk has owed the answer to a write or sync of the log or the manifest; about 0 while it
// works. A disk that hangs fails nothing, so that this is the only sign of it.
func (e *Engine) Waiting() time.Duration { return e.health.waiting() }

// Degraded returns why writes should be refused for now: an error wrapping ErrDegraded while flushes or compactions
// keep failing, ErrStopped after a fatal failure, nil when all is well. It is cheap, and recovers by itself.
func (e *Engine) Degraded() error {
	if err := e.usable(); err != nil {
		return err
	}
	return e.health.degradedErr()
}
