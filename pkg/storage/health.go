package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// backgroundFailuresMax is the number of flushes and compactions that may fail in a row before the engine is
	// degraded. A full disk degrades it at once.
	backgroundFailuresMax = 3
	// A flush or compaction that follows a failed one waits first: paceMin, doubled per failure in a row, up to paceMax.
	paceMin = 10 * time.Millisecond
	paceMax = time.Second
)

// The phases of an engine's life that decide who hears of a fatal failure: Open's caller or OnFatal.
const (
	phaseOpening int32 = iota
	phaseOpen
	phaseFailedOpening
)

// background is how one kind of background work goes.
type background struct {
	// failures counts those that failed in a row.
	failures atomic.Int32
	// degraded is set while failures say so. What it holds wraps ErrDegraded.
	degraded atomic.Pointer[error]
}

// health is what is known about the disk. Every field may be read at any time.
type health struct {
	log     *slog.Logger
	stats   *stats
	onFatal func(error)

	// fatal is set once and stays. What it holds wraps ErrStopped.
	fatal atomic.Pointer[error]
	phase atomic.Int32
	// flushes and compactions are judged apart: flushes may go on for long on a disk too full for a compaction.
	flushes, compactions background
	// stalled is true while Pebble makes a writer wait.
	stalled atomic.Bool
	// nudge, of one slot, wakes the engine's nudging goroutine when background work got stuck or failed.
	nudge chan struct{}
	// closing is closed when the engine closes, so that nobody sleeps then.
	closing chan struct{}

	// mu guards since: when the write or sync that is under way in a file began.
	mu    sync.Mutex
	since map[*guardedFile]time.Time
}

func newHealth(log *slog.Logger, st *stats, onFatal func(error)) *health {
	return &health{
		log: log, stats: st, onFatal: onFatal, nudge: make(chan struct{}, 1), closing: make(chan struct{}),
		since: make(map[*guardedFile]time.Time),
	}
}

// begin notes that the disk was asked for something.
func (h *health) begin(f *guardedFile) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, under := h.since[f]; !under {
		h.since[f] = time.Now()
	}
}

// end notes that the disk has answered.
func (h *health) end(f *guardedFile) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.since, f)
}

// waiting returns for how long the disk has owed an answer.
func (h *health) waiting() (longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, since := range h.since {
		longest = max(longest, time.Since(since))
	}
	return longest
}

// wake signals nudge unless it is signalled already.
func (h *health) wake() {
	select {
	case h.nudge <- struct{}{}:
	default:
	}
}

// troubled reports whether background work fails or keeps a writer waiting.
func (h *health) troubled() bool {
	return h.flushes.failures.Load() > 0 || h.compactions.failures.Load() > 0 || h.stalled.Load()
}

// oneLine returns the error's message without what Pebble's errors may print besides: details, and stacks when a
// logging handler formats them.
func oneLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// stopped returns the error that stopped the engine, nil while it runs.
func (h *health) stopped() error {
	if p := h.fatal.Load(); p != nil {
		return *p
	}
	return nil
}

// degradedErr returns why writes should be refused for now.
func (h *health) degradedErr() error {
	if p := h.flushes.degraded.Load(); p != nil {
		return *p
	}
	if p := h.compactions.degraded.Load(); p != nil {
		return *p
	}
	return nil
}

// trip stops the engine. Only the first cause counts.
func (h *health) trip(cause error) {
	err := fmt.Errorf("%w: %w", ErrStopped, cause)
	if !h.fatal.CompareAndSwap(nil, &err) {
		return
	}
	h.log.Error("storage stops: its log or manifest could not be written; no write is acknowledged any more", "error", oneLine(cause))
	if h.phase.CompareAndSwap(phaseOpening, phaseFailedOpening) {
		return
	}
	if h.onFatal != nil {
		h.onFatal(err)
	}
}

// arm ends the opening phase: from now on OnFatal is told. It returns the failure that came first, if one did.
func (h *health) arm() error {
	if h.phase.CompareAndSwap(phaseOpening, phaseOpen) {
		return nil
	}
	return h.stopped()
}

// close lets everything that paces itself go on at once.
func (h *health) close() { close(h.closing) }

// pace delays background work that follows a failed one of its kind, unless the engine is closing.
func (h *health) pace(w *background) {
	failures := w.failures.Load()
	if failures == 0 {
		return
	}
	delay := paceMax
	if failures < 8 {
		delay = min(paceMin<<(failures-1), paceMax)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.closing:
	}
}

// listener returns the handlers of Pebble's events. Pebble may hold its locks while it calls them.
func (h *health) listener() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(error) { h.stats.backgroundErrors.Inc() },
		FlushEnd: func(i pebble.FlushInfo) {
			// A flush that had nothing to write is told as one that failed.
			if i.Err != nil && strings.Contains(i.Err.Error(), "empty table") {
				i.Err = nil
			}
			h.backgroundEnd(&h.flushes, "flush", i.Err)
		},
		CompactionEnd: func(i pebble.CompactionInfo) {
			if !errors.Is(i.Err, pebble.ErrCancelledCompaction) {
				h.backgroundEnd(&h.compactions, "compaction", i.Err)
			}
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			h.noteCorruption("block", fmt.Errorf("%s: %w", i.Path, i.Details))
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			h.stalled.Store(true)
			h.wake()
			h.stats.stalls.Inc()
			h.log.Warn("storage stalls writes", "reason", i.Reason)
		},
		WriteStallEnd: func() { h.stalled.Store(false) },
	}
}

// backgroundEnd is told how a flush or a compaction ended.
func (h *health) backgroundEnd(w *background, what string, err error) {
	if err == nil {
		if w.failures.Swap(0) > 0 {
			w.degraded.Store(nil)
			h.log.Info("storage: background writes work again", "what", what)
		}
		return
	}
	failures := w.failures.Add(1)
	h.wake()
	if h.stopped() != nil {
		return
	}
	if isNoSpace(err) || failures >= backgroundFailuresMax {
		degraded := fmt.Errorf("%w: %d times in a row a %s failed, the last time: %w", ErrDegraded, failures, what, err)
		w.degraded.Store(&degraded)
	}
	// The first, the second, the fourth and so on: a full disk must not fill up with messages about it.
	if bits.OnesCount32(uint32(failures)) == 1 {
		h.log.Error("storage: a background write failed and will be repeated",
			"what", what, "error", oneLine(err), "failures_in_a_row", failures)
	}
}

// noteCorruption counts and logs damage that was found.
func (h *health) noteCorruption(space string, err error) {
	h.stats.corruptions.WithLabelValues(space).Inc()
	h.log.Error("storage: corruption", "keyspace", space, "error", oneLine(err))
}

// isNoSpace reports whether the disk is full.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isLockHeld reports whether taking a directory's lock failed because somebody holds it, not because the lock file
// could not be created.
func isLockHeld(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return false
	}
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) ||
		strings.Contains(err.Error(), "lock held by current process")
}

// pebbleLogger hands Pebble's messages to slog.
type pebbleLogger struct {
	log    *slog.Logger
	health *health
}

// Infof implements pebble.Logger. Pebble narrates; its narration is for debugging.
func (l pebbleLogger) Infof(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }

// Errorf implements pebble.Logger.
func (l pebbleLogger) Errorf(format string, args ...any) { l.log.Error(fmt.Sprintf(format, args...)) }

// Fatalf implements pebble.Logger. Pebble expects that it does not return; it does, with the disk frozen, so that
// nothing Pebble does afterwards has an effect.
func (l pebbleLogger) Fatalf(format string, args ...any) { l.health.trip(fmt.Errorf(format, args...)) }
