package transport

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// Many requests in one frame. The body is their count and then each with its length before it; the reply has as many
// answers, each a reply of its own with status and length. A reply of reads may stop early where values are large: what it
// leaves out is asked for again.

// eachBytesMax is about how much one frame with many requests or answers takes. What exceeds it goes into another one.
const eachBytesMax = 4 << 20

// WriteEach implements quorum.Replica.
func (m *Mux) WriteEach(ctx context.Context, to kv.NodeID, ws []quorum.WriteRequest, done func(int, []quorum.WriteResult)) {
	if to == m.self {
		m.handler.HandleWrites(to, ws, func(results []quorum.WriteResult) { done(0, results) })
		return
	}
	for first := 0; first < len(ws); {
		part := ws[first : first+fitting(len(ws)-first, func(i int) int { return writeBytes(&ws[first+i]) })]
		at := first
		m.many(ctx, to, kindWrites, ws[0].Epoch, len(part), func(dst []byte, i int) []byte { return appendWrite(dst, &part[i]) },
			func(answers [][]byte, err error) { done(at, writeResults(answers, len(part), err)) })
		first += len(part)
	}
}

// ReadEach implements quorum.Replica.
func (m *Mux) ReadEach(ctx context.Context, to kv.NodeID, rs []quorum.ReadRequest, done func(int, []quorum.ReadResult)) {
	if to == m.self {
		m.handler.HandleReads(to, rs, func(results []quorum.ReadResult) { done(0, results) })
		return
	}
	m.readFrom(ctx, to, rs, 0, done)
}

// readFrom asks for the reads from first on.
func (m *Mux) readFrom(ctx context.Context, to kv.NodeID, rs []quorum.ReadRequest, first int, done func(int, []quorum.ReadResult)) {
	part := rs[first:]
	m.many(ctx, to, kindReads, rs[0].Epoch, len(part), func(dst []byte, i int) []byte { return appendRead(dst, &part[i]) },
		func(answers [][]byte, err error) {
			results := readResults(answers, len(part), err)
			done(first, results)
			if len(results) < len(part) {
				m.readFrom(ctx, to, rs, first+len(results), done)
			}
		})
}

// ForwardEach has the peer execute the requests, each by itself, and waits for what became of them. The error is about all
// of them and is as Forward's.
func (m *Mux) ForwardEach(ctx context.Context, to kv.NodeID, rs []kv.Request) ([]kv.Answer, error) {
	if to == m.self {
		deadline := m.deadline(ctx, time.Now())
		return wait(ctx, deadline, true, func(reply func([]kv.Answer, error)) {
			m.handler.HandleForwards(to, rs, deadline, func(answers []kv.Answer) { reply(answers, nil) })
		})
	}
	body, err := m.await(ctx, to, kindForwards, true, func(dst []byte) []byte {
		return appendMany(dst, len(rs), func(dst []byte, i int) []byte { return kv.AppendRequest(dst, &rs[i]) })
	})
	if err != nil {
		return nil, err
	}
	answers, err := decodeMany(body)
	if err == nil && len(answers) != len(rs) {
		err = malformed("%d answers to %d requests", len(answers), len(rs))
	}
	if err != nil {
		return nil, kv.Errorf(kv.CodeInternal, "unreadable response of node %d: %w", to, err).WithOutcome(kv.OutcomeUnknown)
	}
	out := make([]kv.Answer, len(answers))
	for i := range answers {
		body, failed, err := splitReply(answers[i])
		if err == nil && failed == nil {
			out[i].Response, err = kv.DecodeResponse(body)
		}
		switch {
		case err != nil:
			out[i].Err = kv.Errorf(kv.CodeInternal, "unreadable response of node %d: %w", to, err).WithOutcome(kv.OutcomeUnknown)
		case failed != nil:
			out[i].Err = kv.AsError(failed)
		}
	}
	return out, nil
}

// many sends the requests in one frame. done has the answers, which alias memory of their own, or the error of all.
func (m *Mux) many(
	ctx context.Context, to kv.NodeID, k kind, epoch kv.Epoch, n int, body func(dst []byte, i int) []byte, done func([][]byte, error),
) {
	c := &call{kind: k, changes: k == kindWrites}
	c.onBytes = func(b []byte, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		answers, err := decodeMany(b)
		if err == nil && (len(answers) > n || len(answers) == 0 || len(answers) < n && c.changes) {
			err = malformed("%d answers to %d requests", len(answers), n)
		}
		if err != nil {
			err = c.lost(kv.CodeInternal, err)
		}
		done(answers, err)
	}
	if _, err := m.request(ctx, to, c, epoch, func(dst []byte) []byte { return appendMany(dst, n, body) }); err != nil {
		done(nil, err)
	}
}

// fitting returns how many of the first n things go into one frame, at least one.
func fitting(n int, size func(i int) int) int {
	total := 0
	for i := range n {
		if total += size(i); total > eachBytesMax && i > 0 {
			return i
		}
	}
	return n
}

// writeBytes is about what a write takes.
func writeBytes(w *quorum.WriteRequest) int {
	const each = 64
	size := each + len(w.Key) + len(w.Set.Context)*10
	for i := range w.Set.Siblings {
		size += each + len(w.Set.Siblings[i].Value)
	}
	return size
}

// appendMany appends a count and the things, each with its length before it.
func appendMany(dst []byte, n int, one func(dst []byte, i int) []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(n))
	for i := range n {
		start := len(dst)
		dst = binary.BigEndian.AppendUint32(dst, 0)
		dst = one(dst, i)
		binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-manyLengthBytes))
	}
	return dst
}

// manyLengthBytes is what the length before each thing takes.
const manyLengthBytes = 4

// decodeMany reads what appendMany wrote. What it returns aliases b.
func decodeMany(b []byte) ([][]byte, error) {
	n, b, err := decodeUvarint(b)
	if err != nil {
		return nil, err
	}
	if n > uint64(len(b)/manyLengthBytes) {
		return nil, malformed("%d things in %d bytes", n, len(b))
	}
	out := make([][]byte, n)
	for i := range out {
		if len(b) < manyLengthBytes {
			return nil, malformed("a length is cut short")
		}
		size := uint64(binary.BigEndian.Uint32(b))
		b = b[manyLengthBytes:]
		if size > uint64(len(b)) {
			return nil, malformed("%d bytes where %d are left", size, len(b))
		}
		out[i], b = b[:size:size], b[size:]
	}
	if len(b) > 0 {
		return nil, malformed("%d bytes follow the last of many", len(b))
	}
	return out, nil
}

func writeResults(answers [][]byte, n int, err error) []quorum.WriteResult {
	out := make([]quorum.WriteResult, n)
	for i := range out {
		if out[i].Err = err; err != nil {
			continue
		}
		body, failed, err := splitReply(answers[i])
		if err == nil && failed == nil {
			out[i].Reply, err = decodeWriteReply(body)
		}
		if out[i].Err = failed; err != nil {
			out[i].Err = kv.Errorf(kv.CodeInternal, "%w", err).WithOutcome(kv.OutcomeUnknown)
		}
	}
	return out
}

// readResults has a result for each answer, or one for each of n reads that failed together.
func readResults(answers [][]byte, n int, err error) []quorum.ReadResult {
	if err != nil {
		out := make([]quorum.ReadResult, n)
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	out := make([]quorum.ReadResult, len(answers))
	for i := range out {
		body, failed, err := splitReply(answers[i])
		if err == nil && failed == nil {
			out[i].Reply, err = decodeReadReply(body)
		}
		if out[i].Err = failed; err != nil {
			out[i].Err = kv.Errorf(kv.CodeInternal, "%w", err)
		}
	}
	return out
}

// dispatchMany decodes a frame with many requests and hands them to the handler. The body is given up.
func (m *Mux) dispatchMany(p *peer, k kind, id uint64, epoch kv.Epoch, timeout time.Duration, body []byte) error {
	bodies, err := decodeMany(body)
	if err != nil {
		return err
	}
	if len(bodies) == 0 {
		return malformed("no request")
	}
	switch k {
	case kindWrites:
		ws := make([]quorum.WriteRequest, len(bodies))
		for i := range ws {
			if ws[i], err = decodeWrite(epoch, bodies[i]); err != nil {
				return err
			}
		}
		m.handler.HandleWrites(p.id, ws, func(results []quorum.WriteResult) {
			p.respondMany(id, len(results), func(dst []byte, i int) []byte {
				return appendAnswer(dst, results[i].Err, func(dst []byte) []byte { return appendWriteReply(dst, &results[i].Reply) })
			})
		})
	case kindReads:
		rs := make([]quorum.ReadRequest, len(bodies))
		for i := range rs {
			if rs[i], err = decodeRead(epoch, bodies[i]); err != nil {
				return err
			}
		}
		m.handler.HandleReads(p.id, rs, func(results []quorum.ReadResult) {
			n := fitting(len(results), func(i int) int { return readReplyBytes(&results[i].Reply) })
			p.respondMany(id, n, func(dst []byte, i int) []byte {
				return appendAnswer(dst, results[i].Err, func(dst []byte) []byte { return appendReadReply(dst, &results[i].Reply) })
			})
		})
	default:
		return m.dispatchForwards(p, id, timeout, bodies)
	}
	return nil
}

func (m *Mux) dispatchForwards(p *peer, id uint64, timeout time.Duration, bodies [][]byte) error {
	rs := make([]kv.Request, len(bodies))
	for i := range rs {
		var err error
		if rs[i], err = kv.DecodeRequest(bodies[i]); err != nil {
			return err
		}
	}
	m.handler.HandleForwards(p.id, rs, time.Now().Add(min(timeout, m.cfg.CallTimeoutMax)), func(answers []kv.Answer) {
		size := 0
		p.respondMany(id, len(answers), func(dst []byte, i int) []byte {
			a := &answers[i]
			failed := a.Err
			if size += responseBytes(&a.Response); failed == nil && size > eachBytesMax && i > 0 && !rs[i].Op.IsWrite() {
				// The asker asks for it by itself.
				failed = kv.Errorf(kv.CodeNotReady, "the values do not fit into one answer")
			}
			if failed != nil {
				return appendReplyError(dst, failed)
			}
			return kv.AppendResponse(append(dst, statusOK), &a.Response)
		})
	})
	return nil
}

// respondMany replies with n answers.
func (p *peer) respondMany(id uint64, n int, one func(dst []byte, i int) []byte) {
	p.respondWith(id, nil, func(dst []byte) []byte { return appendMany(dst, n, one) })
}

func appendAnswer(dst []byte, err error, body func([]byte) []byte) []byte {
	if err != nil {
		return appendReplyError(dst, err)
	}
	return body(append(dst, statusOK))
}

// readReplyBytes is about what an answer to a read takes.
func readReplyBytes(r *quorum.ReadReply) int {
	return len(r.Strong.Value) + writeBytes(&quorum.WriteRequest{Set: r.Set})
}

// responseBytes is about what a response takes.
func responseBytes(r *kv.Response) int {
	const each = 64
	size := each + len(r.Value) + len(r.Context)
	for i := range r.Siblings {
		size += each + len(r.Siblings[i].Value)
	}
	return size
}
