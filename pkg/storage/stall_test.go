package storage

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// categoryFS lets the creation of files of one category fail, as a full disk does.
type categoryFS struct {
	vfs.FS
	fail     func(vfs.DiskWriteCategory) error
	attempts atomic.Int64
}

func (c *categoryFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.fail(category); err != nil {
		c.attempts.Add(1)
		return nil, err
	}
	return c.FS.Create(name, category)
}

func (c *categoryFS) Unwrap() vfs.FS { return c.FS }

// TestAFullDiskDegradesAndRecovers keeps flushes from finding room, then makes room.
func TestAFullDiskDegradesAndRecovers(t *testing.T) {
	var full atomic.Bool
	fs := &categoryFS{FS: NewMemFS(), fail: func(c vfs.DiskWriteCategory) error {
		if full.Load() && isBackground(c) {
			return syscall.ENOSPC
		}
		return nil
	}}
	var logged lockedBuffer
	e := open(t, "data", Deps{FS: fs, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	require.NoError(t, e.Degraded())
	full.Store(true)
	// Enough to rotate the memtable and little enough not to be stalled.
	write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
	write(t, e, func(b *Batch) { b.SetNodeRow("big", make([]byte, 200<<10)) })
	require.Eventually(t, func() bool { return errors.Is(e.Degraded(), ErrDegraded) }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, e.Degraded(), syscall.ENOSPC)
	require.NotErrorIs(t, e.Degraded(), ErrStopped)
	write(t, e, func(b *Batch) { b.SetNodeRow("small", []byte("reads and small writes go on")) })

	before := fs.attempts.Load()
	time.Sleep(300 * time.Millisecond)
	require.Less(t, fs.attempts.Load()-before, int64(30), "flushes are repeated without a pause")
	require.Positive(t, testutil.ToFloat64(e.stats.backgroundErrors))
	require.Less(t, strings.Count(logged.String(), "background write failed"), 8)

	full.Store(false)
	require.Eventually(t, func() bool { return e.Degraded() == nil }, 10*time.Second, time.Millisecond)
	v, found, err := e.NodeRow("small")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, []byte("reads and small writes go on"), v)
}

// TestAWriterThatIsStalledIsReleasedWhenTheEngineStops fills a disk until Pebble makes the writer wait, with no room
// ever coming. Without its release nobody could close the engine.
func TestAWriterThatIsStalledIsReleasedWhenTheEngineStops(t *testing.T) {
	e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
		if isBackground(c) {
			return syscall.ENOSPC
		}
		return nil
	})
	require.InDelta(t, 1, e.Pressure(), 1e-9)
	e.health.trip(errors.New("the log fails too"))
	require.ErrorIs(t, receive(t, stopped, 20*time.Second), ErrStopped)
	within(t, "closing", func() { require.NoError(t, e.Close()) })
}

// envSlow enables tests that wait for timeouts inside Pebble.
const envSlow = "CAPROCK_STORAGE_SLOW"

// TestAWriterThatIsStalledOnLevelZeroIsReleased lets compactions fail only once, and for ever. Pebble by itself leaves
// the writer waiting in both cases.
func TestAWriterThatIsStalledOnLevelZeroIsReleased(t *testing.T) {
	if os.Getenv(envSlow) == "" {
		t.Skip("Pebble avoids a failed compaction's tables for 30 s; set " + envSlow + "=1 to wait for it")
	}
	t.Run("when there is room again", func(t *testing.T) {
		t.Parallel()
		var failures atomic.Int64
		e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
			if c == categoryCompaction && failures.Add(1) < 3 {
				return syscall.ENOSPC
			}
			return nil
		})
		require.ErrorIs(t, e.Degraded(), ErrDegraded)
		require.Eventually(t, func() bool { return e.Degraded() == nil && !e.health.stalled.Load() },
			70*time.Second, 10*time.Millisecond)
		e.health.trip(errors.New("enough"))
		require.ErrorIs(t, receive(t, stopped, 20*time.Second), ErrStopped)
		within(t, "closing", func() { require.NoError(t, e.Close()) })
	})
	t.Run("when the engine stops", func(t *testing.T) {
		t.Parallel()
		e, stopped := stalledWriter(t, func(c vfs.DiskWriteCategory) error {
			if c == categoryCompaction {
				return syscall.ENOSPC
			}
			return nil
		})
		e.health.trip(errors.New("the log fails too"))
		require.ErrorIs(t, receive(t, stopped, 70*time.Second), ErrStopped)
		within(t, "closing", func() { require.NoError(t, e.Close()) })
	})
}

// stalledWriter returns an engine one of whose writers waits inside Pebble, and what that writer will return.
func stalledWriter(t *testing.T, fail func(vfs.DiskWriteCategory) error) (*Engine, <-chan error) {
	t.Helper()
	e, err := Open("data", stallingConfig(), Deps{FS: &categoryFS{FS: NewMemFS(), fail: fail}})
	require.NoError(t, err)
	stopped := make(chan error, 1)
	go func() { stopped <- writeUntilRefused(e) }()
	require.Eventually(t, func() bool { return e.health.stalled.Load() && e.Degraded() != nil },
		20*time.Second, time.Millisecond)
	return e, stopped
}

func receive(t *testing.T, c <-chan error, limit time.Duration) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(limit):
		t.Fatalf("the writer is still stalled after %s", limit)
		return nil
	}
}

func stallingConfig() Config {
	cfg := smallConfig()
	cfg.MemtablesMax, cfg.L0CompactionSublevels, cfg.L0StopSublevels = 2, 1, 2
	return cfg
}

// writeUntilRefused overwrites a few keys, so that every flush adds a sublevel to level 0.
func writeUntilRefused(e *Engine) error {
	for {
		b := e.NewBatch()
		for k := range 4 {
			b.SetNodeRow(string(rune('a'+k)), make([]byte, 16<<10))
		}
		err := e.ApplyNoSync(b)
		b.Close()
		if err != nil {
			return err
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
