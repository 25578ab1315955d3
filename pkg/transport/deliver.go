package transport

import (
	"bytes"
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/quorum"
)

// skewLogEvery is how often a peer's bad clock is logged; the metric counts every batch.
const skewLogEvery = 10 * time.Second

// Deliver takes a batch that the wire received from the peer. The batch is not retained. An error means that the link
// it came by is of no use: the peer belongs elsewhere or talks nonsense. Frames before the nonsense were handled.
func (m *Mux) Deliver(from kv.NodeID, batch []byte) error {
	h, rest, err := decodeHeader(batch)
	if err != nil {
		return fmt.Errorf("a batch of node %d: %w", from, err)
	}
	if h.from != from || from == m.self {
		return fmt.Errorf("%w: node %d sends as node %d to node %d", ErrWrongNode, from, h.from, m.self)
	}
	if ours := m.cluster(); ours != 0 && h.cluster != 0 && ours != h.cluster {
		return fmt.Errorf("%w: node %d is of cluster %016x, this node of %016x", ErrForeignCluster, from, h.cluster, ours)
	}
	if m.closed.Load() {
		return ErrClosed
	}
	p, err := m.peer(from)
	if err != nil {
		return err
	}
	m.metrics.received(len(batch))
	p.heard()
	// A clock that is too far ahead is not taken over. What the peer asks for is served all the same: a read or a strong
	// write does not depend on it, and a stamp from it is refused where stamps are judged.
	if err := m.clock.Observe(h.clock); err != nil {
		m.metrics.skewed.Inc()
		p.logSkew(err)
	}
	for len(rest) > 0 {
		var f frame
		if f, rest, err = nextFrame(rest); err != nil {
			return fmt.Errorf("a batch of node %d: %w", from, err)
		}
		at := p
		if f.kind.isBulk() {
			if at, err = m.peerIn(&m.bulk, from); err != nil {
				return err
			}
		}
		m.arrive(at, h.life, f)
	}
	return nil
}

// heard notes that the peer is alive: whoever sends can most likely be called back. It cuts a pause short once in a
// while only, in case the peer can reach this node and is not reachable itself.
func (p *peer) heard() {
	if !p.down.Load() {
		return
	}
	now, last := int64(time.Since(p.m.began)), p.nudged.Load()
	if (last == 0 || now-last >= int64(p.m.cfg.BackoffMax)) && p.nudged.CompareAndSwap(last, now) {
		poke(p.retry)
	}
}

func (p *peer) logSkew(err error) {
	now, last := int64(time.Since(p.m.began)), p.warned.Load()
	if (last == 0 || now-last >= int64(skewLogEvery)) && p.warned.CompareAndSwap(last, now) {
		p.m.log.Warn("a peer's clock is too far ahead; its readings are ignored", "peer", uint64(p.id), "error", err)
	}
}

// arrive lets the fault injector deal with a frame before it is handled.
func (m *Mux) arrive(p *peer, life uint64, f frame) {
	if m.faults == nil || f.kind == kindVoid {
		m.handle(p, life, f)
		return
	}
	class := f.kind.class()
	fate := m.faults.fate(p.id, DirectionIn, class)
	switch {
	case fate.drop:
		m.metrics.dropped(class, reasonFault)
		return
	case fate.delay > 0:
		m.delays.add(fate.delay, delayed{
			peer: p, class: class, twice: fate.duplicate, life: life, kind: f.kind, id: f.id,
			bytes: bytes.Clone(f.payload),
		})
		return
	}
	m.handle(p, life, f)
	if fate.duplicate {
		m.handle(p, life, f)
	}
}

// undelay lets go of a frame that the fault injector held back.
func (m *Mux) undelay(d *delayed) {
	for range 1 + int(flagIf(d.twice, 1)) {
		if d.out {
			d.peer.release(d)
		} else {
			m.handle(d.peer, d.life, frame{kind: d.kind, id: d.id, payload: d.bytes})
		}
	}
}

func (m *Mux) handle(p *peer, life uint64, f frame) {
	switch {
	case f.kind == kindRaft:
		m.handler.HandleRaft(p.id, f.payload)
	case f.kind.isReply():
		c := p.finish(f.id)
		if c == nil {
			m.metrics.strayReplies.Inc()
			return
		}
		c.reply(f.payload)
	case f.kind.isRequest():
		if !p.fresh(life, f.id) && mutant.Planted != mutant.RepeatedRequestServed {
			m.metrics.repeated.Inc()
			return
		}
		if err := m.dispatch(p, f.kind, f.id, bytes.Clone(f.payload)); err != nil {
			m.metrics.malformed.Inc()
			p.respondError(f.id, kv.Errorf(kv.CodeBadRequest, "unreadable %s request of node %d: %w", f.kind, p.id, err))
		}
	}
}

// fresh reports whether the request was not taken before, and notes that it is.
func (p *peer) fresh(life, id uint64) bool {
	p.arrivals.Lock()
	defer p.arrivals.Unlock()
	return p.window.take(life, id)
}

// dispatch decodes a request and hands it to the handler. The payload is given up.
func (m *Mux) dispatch(p *peer, k kind, id uint64, payload []byte) error {
	epoch, timeout, body, err := decodeRequestPrefix(payload)
	if err != nil {
		return err
	}
	switch k {
	case kindWrite, kindHint, kindHandOver:
		w, err := decodeWriteOf(k, epoch, body)
		if err != nil {
			return err
		}
		m.handler.HandleWrite(p.id, w, func(r quorum.WriteReply, err error) {
			p.respondWith(id, err, func(dst []byte) []byte { return appendWriteReply(dst, &r) })
		})
	case kindRead:
		r, err := decodeRead(epoch, body)
		if err != nil {
			return err
		}
		m.handler.HandleRead(p.id, r, func(r quorum.ReadReply, err error) {
			p.respondWith(id, err, func(dst []byte) []byte { return appendReadReply(dst, &r) })
		})
	case kindForward:
		r, err := kv.DecodeRequest(body)
		if err != nil {
			return err
		}
		m.handler.HandleForward(p.id, r, time.Now().Add(min(timeout, m.cfg.CallTimeoutMax)), func(r kv.Response, err error) {
			p.respondWith(id, err, func(dst []byte) []byte { return kv.AppendResponse(dst, &r) })
		})
	case kindWrites, kindReads, kindForwards:
		return m.dispatchMany(p, k, id, epoch, timeout, body)
	case kindScan:
		r, err := decodeScan(epoch, body)
		if err != nil {
			return err
		}
		m.handler.HandleScan(p.id, r, func(r quorum.ScanReply, err error) {
			p.respondWith(id, err, func(dst []byte) []byte { return appendScanReply(dst, &r) })
		})
	case kindExchange:
		m.handler.HandleExchange(p.id, body, p.respondBytes(id))
	case kindPull:
		m.handlePull(p.id, body, p.respondBytes(id))
	default:
		m.handler.HandleMeta(p.id, body, p.respondBytes(id))
	}
	return nil
}

func (p *peer) respondBytes(id uint64) func([]byte, error) {
	return func(b []byte, err error) {
		p.respondWith(id, err, func(dst []byte) []byte { return append(dst, b...) })
	}
}

// respondWith replies with the body, or with the error when there is one.
func (p *peer) respondWith(id uint64, err error, body func([]byte) []byte) {
	if err != nil {
		p.respondError(id, err)
		return
	}
	p.respond(id, func(dst []byte) []byte { return body(append(dst, statusOK)) })
}

func (p *peer) respondError(id uint64, err error) {
	p.respond(id, func(dst []byte) []byte { return appendReplyError(dst, err) })
}
