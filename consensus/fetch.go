package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

const (
	// pullAttemptsMax bounds how often one request is repeated, and pullPauseMin how long the first pause between two is;
	// each is twice the one before. Together they wait out a peer's restart, and no more.
	pullAttemptsMax = 6
	pullPauseMin    = 100 * time.Millisecond
	// pullCloseTimeout bounds the goodbye. A peer that does not hear it gives the snapshot up by itself.
	pullCloseTimeout = time.Second
	// installAttemptsMax bounds how often an install is tried that failed without having changed anything.
	installAttemptsMax = 5
)

// errPullGone says that the peer has no such snapshot any more, or none that goes far enough.
var errPullGone = errors.New("the peer gave the snapshot up")

// fetch is one snapshot that is pulled from a peer.
type fetch struct {
	*Store
	group kv.GroupID
	from  kv.NodeID
	// least is the index that it must reach.
	least uint64
}

// pulled is what a request ended with.
type pulled struct {
	reply pullReply
	err   error
}

// run pulls the snapshot into a stage. While one chunk is written the next one is under way.
func (f *fetch) run(ctx context.Context) (*storage.Stage, error) {
	stage := f.deps.Engine.NewStage(f.group)
	if err := f.fill(ctx, stage); err != nil {
		stage.Discard()
		return nil, err
	}
	return stage, nil
}

func (f *fetch) fill(ctx context.Context, stage *storage.Stage) error {
	ctx, cancel := context.WithCancel(ctx)
	coming := make(chan pulled, 1)
	pulling := false
	pull := func(p pullRequest) {
		pulling = true
		go func() {
			reply, err := f.pull(ctx, &p)
			coming <- pulled{reply, err}
		}()
	}
	defer func() {
		cancel()
		if pulling {
			<-coming
		}
	}()
	pull(pullRequest{verb: pullOpen, group: f.group, least: f.least})
	for {
		got := <-coming
		pulling = false
		if got.err != nil {
			return got.err
		}
		if got.reply.next != nil {
			pull(pullRequest{verb: pullNext, group: f.group, session: got.reply.session, after: got.reply.next})
		}
		if err := stage.Add(got.reply.rows); err != nil {
			return err
		}
		f.metrics.snapshotBytes.WithLabelValues(directionReceived).Add(float64(len(got.reply.rows)))
		if got.reply.next == nil {
			f.close(ctx, got.reply.session)
			return stage.Finish()
		}
	}
}

// pull makes one request, again and again while there is hope.
func (f *fetch) pull(ctx context.Context, p *pullRequest) (reply pullReply, err error) {
	pause := pullPauseMin
	for attempt := 1; ; attempt++ {
		if reply, err = f.try(ctx, p, f.cfg.SnapshotPullTimeout); err == nil && reply.status == pullOK {
			return reply, nil
		}
		if err == nil && reply.status == pullGone {
			return reply, errPullGone
		}
		if attempt == pullAttemptsMax {
			if err == nil {
				err = errors.New("the peer is busy with other snapshots")
			}
			return reply, fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		if !sleep(ctx, pause) {
			return reply, context.Cause(ctx)
		}
		pause *= 2
	}
}

func (f *fetch) try(ctx context.Context, p *pullRequest, timeout time.Duration) (pullReply, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := f.deps.Puller.Pull(ctx, f.from, p.append(nil))
	if err != nil {
		return pullReply{}, err
	}
	return decodePullReply(raw)
}

// close tells the peer that its snapshot is not needed any more.
func (f *fetch) close(ctx context.Context, session uint64) {
	// Whoever does not hear it finds out by itself.
	_, _ = f.try(ctx, &pullRequest{verb: pullClose, group: f.group, session: session}, pullCloseTimeout)
}

// sleep waits for d. It returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
