package transport

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

// call is a request that waits for its reply. The peer's mutex guards all but the first group of fields.
type call struct {
	kind kind
	// changes says that the request may change something, so that its failure after sending is "unknown".
	changes bool
	// One of these is set, by kind.
	onWrite func(quorum.WriteReply, error)
	onRead  func(quorum.ReadReply, error)
	onBytes func(body []byte, err error)

	id uint64
	// chunk and offset say where the frame is while it is queued; chunk is 0 when it is not, or no longer can be.
	chunk  uint64
	offset int
	// tick, prev and next are the wheel's.
	tick       uint64
	prev, next *call
}

// reply ends the call with the peer's reply. The payload is not retained.
func (c *call) reply(payload []byte) {
	if !c.kind.isWrite() { // what a write is answered with has no bytes of its own
		payload = bytes.Clone(payload)
	}
	body, answer, err := splitReply(payload)
	switch {
	case err != nil:
		c.fail(c.lost(kv.CodeInternal, err))
		return
	case answer != nil:
		c.fail(answer)
		return
	}
	switch {
	case c.kind.isWrite():
		r, err := decodeWriteReply(body)
		if err != nil {
			err = c.lost(kv.CodeInternal, err)
		}
		c.onWrite(r, err)
	case c.kind == kindRead:
		r, err := decodeReadReply(body)
		if err != nil {
			err = c.lost(kv.CodeInternal, err)
		}
		c.onRead(r, err)
	default:
		c.onBytes(body, nil)
	}
}

// fail ends the call with an error.
func (c *call) fail(err error) {
	switch {
	case c.kind.isWrite():
		c.onWrite(quorum.WriteReply{}, err)
	case c.kind == kindRead:
		c.onRead(quorum.ReadReply{}, err)
	default:
		c.onBytes(nil, err)
	}
}

// lost makes the error of a call that was handed to a link and whose answer will not come. What changes nothing was
// never applied, whatever happened to it.
func (c *call) lost(code kv.Code, err error) *kv.Error {
	e := kv.Errorf(code, "%w", err)
	e.Retryable = true
	if c.changes {
		return e.WithOutcome(kv.OutcomeUnknown)
	}
	return e
}

// errOverdue is why a call ended whose time was up.
var errOverdue = errors.New("no answer in time")

// overdue makes the error of a call whose time is up.
func (c *call) overdue(to kv.NodeID, queued bool) *kv.Error {
	if queued {
		return notSent(kv.CodeDeadlineExceeded, "node %d was not ready to be sent to in time", to)
	}
	return c.lost(kv.CodeDeadlineExceeded, fmt.Errorf("node %d: %w", to, errOverdue))
}

// broken makes the error of a call whose link broke.
func (c *call) broken(to kv.NodeID, queued bool, cause error) *kv.Error {
	if queued {
		return notSent(kv.CodeNotReady, "the link to node %d broke (%v)", to, cause)
	}
	return c.lost(kv.CodeNotReady, fmt.Errorf("node %d: %w: %w", to, ErrLinkBroken, cause))
}
