package transport

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// run keeps a link to the peer and sends what is queued, until ctx is done or the peer was forgotten.
func (p *peer) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pauses := &backoff.ExponentialBackOff{
		InitialInterval: p.m.cfg.BackoffMin, MaxInterval: p.m.cfg.BackoffMax, Multiplier: 2,
		// The spread is added in pause, from the mux's own random source.
		RandomizationFactor: 0,
	}
	pauses.Reset()
	for !p.stopping(ctx) {
		link, err := p.connect(ctx)
		if err != nil {
			p.logDown("cannot connect to a peer", err)
			p.abandon(linkDown, err)
			p.pause(ctx, pauses)
			continue
		}
		began := time.Now()
		p.setUp()
		err = p.pump(ctx, link)
		p.m.metrics.linksUp.Dec()
		if p.stopping(ctx) {
			break
		}
		if time.Since(began) >= p.m.cfg.StableAfter {
			p.m.log.Warn("the link to a peer broke", "peer", uint64(p.id), "error", err)
			p.abandon(linkConnecting, err)
			pauses.Reset()
			continue
		}
		p.logDown("the link to a peer broke at once", err)
		p.abandon(linkDown, err)
		p.pause(ctx, pauses)
	}
	p.close(ErrClosed)
}

func (p *peer) stopping(ctx context.Context) bool {
	select {
	case <-p.gone:
		return true
	default:
		return ctx.Err() != nil
	}
}

// logDown logs the first failure of a row; the pauses would otherwise fill the log with the same line.
func (p *peer) logDown(what string, err error) {
	if !p.down.Load() {
		p.m.log.Warn(what, "peer", uint64(p.id), "error", err)
	}
}

func (p *peer) connect(ctx context.Context) (Link, error) {
	ctx, cancel := context.WithTimeout(ctx, p.m.cfg.ConnectTimeout)
	defer cancel()
	link, err := p.m.wire.Connect(ctx, p.id)
	p.m.metrics.connected(err)
	if err != nil {
		return nil, fmt.Errorf("connect to node %d: %w", p.id, err)
	}
	return link, nil
}

func (p *peer) setUp() {
	p.mu.Lock()
	p.state, p.cause = linkUp, nil
	p.mu.Unlock()
	p.down.Store(false)
	p.m.metrics.linksUp.Inc()
	p.m.log.Info("connected to a peer", "peer", uint64(p.id))
}

// pause waits before the next attempt to connect: half of the interval for certain, the rest by chance, so that nodes
// which lost a peer together do not come back together.
func (p *peer) pause(ctx context.Context, pauses *backoff.ExponentialBackOff) {
	interval := pauses.NextBackOff()
	timer := time.NewTimer(interval/2 + p.m.jitter(interval/2))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-p.gone:
	case <-p.retry:
		pauses.Reset()
	case <-timer.C:
	}
}

// pump sends what is queued until the link breaks, ctx is done, or the peer was forgotten. It closes the link.
func (p *peer) pump(ctx context.Context, link Link) (err error) {
	// A send may block; closing the link frees it.
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = link.Close()
		close(closed)
	})
	defer func() {
		if !stop() {
			<-closed
		}
		_ = link.Close() // what it could say is known: err
	}()
	idle := time.NewTimer(p.m.cfg.IdleEvery)
	defer idle.Stop()
	// The first batch is empty: it tells the peer that this node is here, so that it need not wait to call back.
	batch := make([]byte, headerBytes)
	for {
		if batch != nil {
			p.m.header().put(batch)
			if err := link.Send(batch); err != nil {
				return err
			}
			p.m.metrics.sent(len(batch))
			idle.Reset(p.m.cfg.IdleEvery)
		}
		if batch = p.next(batch); batch != nil {
			continue
		}
		select {
		case <-p.wake:
		case <-idle.C:
			p.trim()
			batch = make([]byte, headerBytes)
		case <-link.Broken():
			return link.Err()
		case <-p.gone:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// trim lets go of memory that the peer's outboxes do not need while little is sent.
func (p *peer) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raft.trim()
	p.data.trim()
}

// next takes back the memory of the batch that was sent and returns the next one, nil when nothing is queued. It has
// everything that is queued, Raft's frames and the others', up to the batch limit.
func (p *peer) next(sent []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sent != nil {
		p.data.recycle(sent)
	}
	raft, data := p.raft.head(), p.data.head()
	switch {
	case raft == 0 && data == 0:
		p.idle = true
		return nil
	case raft > 0 && data > 0 && raft+data <= p.m.cfg.BatchBytesMax:
		// The smaller one is copied behind the larger one. Nothing relies on the order between the classes.
		into, from := p.raft.take(), p.data.take()
		if len(into) < len(from) {
			into, from = from, into
		}
		batch := append(into, from[headerBytes:]...)
		p.raft.recycle(from)
		return batch
	case data == 0 || raft > 0 && p.lastData:
		p.lastData = false
		return p.raft.take()
	default:
		// Both are large: they take turns, so that neither starves the other.
		p.lastData = true
		return p.data.take()
	}
}
