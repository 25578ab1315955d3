package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// spaceInterval is how often the free space is looked at. Between two looks a node at full speed writes some hundred
	// megabytes, which is why the watermark lies well above nothing.
	spaceInterval = time.Second
	// handoverInterval is the pause between two attempts of a node without space to hand its leaders over. When every
	// disk is full they only change places, so that it must not be short.
	handoverInterval = 10 * time.Second
	// handoverTimeout bounds one attempt.
	handoverTimeout = 2 * time.Second
	// diskPatience is for how long the disk may owe an answer before this node takes no writes and leads nothing: longer than
	// a stall of an ordinary disk, and shorter than the patience of those who write.
	diskPatience = 2 * time.Second
	// spaceRetryAfter is what a refused writer is told to wait.
	spaceRetryAfter = time.Second
)

// Watermark is the free space below which a node takes no writes: FreeBytes, or FreePercent of the disk where that is
// less. Either at 0 switches the watermark off, which leaves a full disk to stop the node.
type Watermark struct {
	FreeBytes   int64
	FreePercent int
}

// DefaultWatermark returns 1 GiB or 5 %.
func DefaultWatermark() Watermark { return Watermark{FreeBytes: 1 << 30, FreePercent: 5} }

// Validate reports what is wrong with the watermark.
func (w Watermark) Validate() error {
	if w.FreeBytes < 0 || w.FreePercent < 0 || w.FreePercent > 50 {
		return fmt.Errorf("the watermark of the disk is %d bytes or %d %%: give at least 0 bytes and 0 to 50 %%", w.FreeBytes, w.FreePercent)
	}
	return nil
}

// bytes returns the watermark of a disk of that size.
func (w Watermark) bytes(total uint64) uint64 {
	// In this order nothing overflows.
	return min(uint64(w.FreeBytes), total/100*uint64(w.FreePercent))
}

// space is what a node knows about the room on its disk. Its zero value has never looked.
type space struct {
	// Invariant: low needs more than the watermark to be reset, so that a node at the watermark does not flap.
	low                         atomic.Bool
	available, total, watermark atomic.Uint64
}

// look takes over what the disk says and reports whether low changed. A disk that is not known to be of any size has
// no watermark.
func (s *space) look(w Watermark, available, total uint64) (changed bool) {
	mark := w.bytes(total)
	s.available.Store(available)
	s.total.Store(total)
	s.watermark.Store(mark)
	low := available < mark
	if s.low.Load() {
		low = available < mark+mark/4
	}
	return s.low.Swap(low) != low
}

// refuseWrite returns why this node takes no writes for now, nil when it does. It is asked for each write of a user and
// each of the eventual lane's. Entries of the Raft groups that others lead are appended all the same: a replica that
// left them out would not be one. The watermark leaves room for them.
func (n *Node) refuseWrite() error {
	var err *kv.Error
	switch degraded, waiting := n.engine.Degraded(), n.engine.Waiting(); {
	case degraded == nil && !n.space.low.Load() && waiting < diskPatience:
		return nil
	case errors.Is(degraded, storage.ErrStopped) || errors.Is(degraded, storage.ErrClosed):
		return kv.Errorf(kv.CodeNotReady, "node %s is stopping: %w", n.cfg.Name, degraded)
	case degraded != nil:
		err = kv.Errorf(kv.CodeOverloaded, "node %s takes no writes: %w", n.cfg.Name, degraded)
	case waiting >= diskPatience:
		err = kv.Errorf(kv.CodeOverloaded, "node %s takes no writes: its disk has not answered for %s", n.cfg.Name, waiting.Round(time.Second))
	default:
		err = kv.Errorf(kv.CodeOverloaded, "the disk of node %s is nearly full (%d bytes free, the watermark is %d): it takes no writes until there is room",
			n.cfg.Name, n.space.available.Load(), n.space.watermark.Load())
	}
	n.metrics.refusedDisk.Inc()
	err.RetryAfter = spaceRetryAfter
	return err
}

// spaceCommitter is the way of the eventual lane to the disk, whoever writes: peers, repairs, anti-entropy. It is the
// last place at which nothing has been written yet.
type spaceCommitter struct{ n *Node }

// Commit implements quorum.Committer.
func (c spaceCommitter) Commit(fill func(*storage.Batch), done func(error)) error {
	if err := c.n.refuseWrite(); err != nil {
		return err
	}
	return c.n.strong.Commit(fill, done)
}

// CommitAsync implements quorum.Committer.
func (c spaceCommitter) CommitAsync(fill func(*storage.Batch), visible func(), done func(error)) error {
	if err := c.n.refuseWrite(); err != nil {
		return err
	}
	return c.n.strong.CommitAsync(fill, visible, done)
}

// watchSpace looks at the free space until ctx is done. While there is none, or background writes fail, it hands over
// what this node leads: another leader can take the writes that this one refuses. It tells the others, so that they do not
// hand it back. A partition of which no other voter is alive and takes writes stays here, and so does what comes back by an election, until the next attempt; it is read here as before.
func (n *Node) watchSpace(ctx context.Context) error {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	var nextHandover time.Time
	told := false
	for {
		n.lookAtSpace()
		unfit := n.unfit()
		if unfit != told {
			if err := n.announce(); err != nil {
				return err
			}
			told = unfit
		}
		if unfit {
			if now := time.Now(); !now.Before(nextHandover) && !n.draining.Load() {
				nextHandover = now.Add(handoverInterval)
				handover, cancel := context.WithTimeout(ctx, handoverTimeout)
				n.strong.TransferAll(handover)
				cancel()
			}
		} else {
			nextHandover = time.Time{}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *Node) lookAtSpace() {
	available, total, err := n.engine.DiskSpace()
	if err != nil {
		// A filesystem in memory cannot tell. What is not known refuses no writes: a disk that is full says so itself.
		n.log.Debug("the free disk space is not known", "error", err)
		available, total = 0, 0
	}
	if !n.space.look(n.cfg.Watermark, available, total) {
		return
	}
	if n.space.low.Load() {
		n.log.Warn("the disk is nearly full: writes are refused until there is room", "free_bytes", available, "watermark_bytes", n.space.watermark.Load())
	} else {
		n.log.Info("the disk has room again: writes go on", "free_bytes", available, "watermark_bytes", n.space.watermark.Load())
	}
}

// DiskDocument is the state of the disk in GET /admin/status.
type DiskDocument struct {
	FreeBytes      uint64 `json:"free_bytes"`
	TotalBytes     uint64 `json:"total_bytes"`
	WatermarkBytes uint64 `json:"watermark_bytes"`
	Writes         string `json:"writes"` // "ok" or why they are refused
}

// diskDocument describes the disk as of the last look; zeros where it cannot tell.
func (n *Node) diskDocument() DiskDocument {
	doc := DiskDocument{
		FreeBytes: n.space.available.Load(), TotalBytes: n.space.total.Load(), WatermarkBytes: n.space.watermark.Load(), Writes: "ok",
	}
	switch degraded := n.engine.Degraded(); {
	case degraded != nil:
		doc.Writes = degraded.Error()
	case n.engine.Waiting() >= diskPatience:
		doc.Writes = "the disk does not answer"
	case n.space.low.Load():
		doc.Writes = "the disk is nearly full"
	}
	return doc
}
