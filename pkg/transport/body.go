package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

// Payloads. A request starts with its epoch and the time it may take, relative because clocks differ, then its body. A
// reply starts with a status, then its body or an error. Bodies end with the frame; decoded ones alias the payload.
const (
	requestPrefixBytes = 8 + 4

	statusOK    = 0
	statusError = 1 // a kv.Error follows
	statusStale = 2 // the replica's epoch follows

	flagAccepted = 1 << 0 // of a write reply
	flagStored   = 1 << 1 // of one that was accepted: the replica heals

	flagHasStrong = 1 << 0 // of a read reply
	flagDeleted   = 1 << 1
	flagHealing   = 1 << 2
	flagNeeds     = 1 << 3

	dotBytesMin = 1 + 8
)

func appendRequestPrefix(dst []byte, epoch kv.Epoch, timeout time.Duration) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(epoch))
	// Rounded up: a request with a little time left must not arrive as one without a limit.
	ms := (timeout + time.Millisecond - 1) / time.Millisecond
	return binary.BigEndian.AppendUint32(dst, uint32(min(max(ms, 1), math.MaxUint32)))
}

func decodeRequestPrefix(b []byte) (epoch kv.Epoch, timeout time.Duration, body []byte, err error) {
	if len(b) < requestPrefixBytes {
		return 0, 0, nil, malformed("a request is cut short")
	}
	epoch = kv.Epoch(binary.BigEndian.Uint64(b))
	timeout = time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Millisecond
	return epoch, timeout, b[requestPrefixBytes:], nil
}

func appendTarget(dst []byte, p kv.PartitionID, key []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(p))
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	return append(dst, key...)
}

func decodeTarget(b []byte) (kv.PartitionID, []byte, []byte, error) {
	if len(b) < 2 {
		return 0, nil, nil, malformed("a partition is cut short")
	}
	p := kv.PartitionID(binary.BigEndian.Uint16(b))
	key, b, err := decodeBytes(b[2:])
	return p, key, b, err
}

func decodeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, malformed("a number is cut short")
	}
	return v, b[n:], nil
}

// decodeBytes reads a length and as many bytes. Empty ones are nil.
func decodeBytes(b []byte) (v, rest []byte, err error) {
	n, b, err := decodeUvarint(b)
	switch {
	case err != nil:
		return nil, nil, err
	case n > uint64(len(b)):
		return nil, nil, malformed("%d bytes where %d are left", n, len(b))
	case n == 0:
		return nil, b, nil
	}
	return b[:n:n], b[n:], nil
}

func appendWrite(dst []byte, w *quorum.WriteRequest) []byte {
	dst = appendTarget(dst, w.Partition, w.Key)
	dst = causal.AppendDot(dst, w.New)
	return causal.AppendSet(dst, w.Set)
}

func decodeWrite(epoch kv.Epoch, b []byte) (w quorum.WriteRequest, err error) {
	w.Epoch = epoch
	if w.Partition, w.Key, b, err = decodeTarget(b); err != nil {
		return w, err
	}
	if w.New, b, err = causal.DecodeDot(b); err != nil {
		return w, err
	}
	w.Set, err = causal.DecodeSet(b)
	return w, err
}

// appendWriteOf appends what a frame of the kind carries: a hint begins with the node that it is for.
func appendWriteOf(k kind, dst []byte, w *quorum.WriteRequest) []byte {
	if k == kindHint {
		dst = binary.AppendUvarint(dst, uint64(w.HintFor))
	}
	return appendWrite(dst, w)
}

func decodeWriteOf(k kind, epoch kv.Epoch, b []byte) (quorum.WriteRequest, error) {
	if k != kindHint {
		w, err := decodeWrite(epoch, b)
		if w.HandOver = k == kindHandOver; err == nil && w.HandOver && !w.IsRepair() {
			err = malformed("a hint that asks for an acknowledgement of its own")
		}
		return w, err
	}
	target, b, err := decodeUvarint(b)
	if err != nil {
		return quorum.WriteRequest{}, err
	}
	w, err := decodeWrite(epoch, b)
	w.HintFor = kv.NodeID(target)
	if err == nil && w.HintFor == kv.NoNode {
		err = malformed("a hint for nobody")
	}
	return w, err
}

func appendRead(dst []byte, r *quorum.ReadRequest) []byte {
	dst = appendTarget(dst, r.Partition, r.Key)
	if r.Peek {
		dst = causal.AppendHLC(dst, r.Promise)
	}
	return dst
}

func decodeRead(epoch kv.Epoch, b []byte) (r quorum.ReadRequest, err error) {
	r.Epoch = epoch
	if r.Partition, r.Key, b, err = decodeTarget(b); err == nil && len(b) > 0 {
		r.Peek = true
		r.Promise, b, err = causal.DecodeHLC(b)
	}
	if err == nil && len(b) > 0 {
		err = malformed("%d bytes follow a read", len(b))
	}
	return r, err
}

func appendWriteReply(dst []byte, r *quorum.WriteReply) []byte {
	dst = append(dst, flagIf(r.Accepted, flagAccepted)|flagIf(r.Accepted && r.Healing, flagStored))
	dst = causal.AppendStamp(dst, r.Highest)
	return causal.AppendPosition(dst, r.Base)
}

func decodeWriteReply(b []byte) (r quorum.WriteReply, err error) {
	if len(b) == 0 || b[0] > flagAccepted|flagStored || b[0] == flagStored {
		return r, malformed("a write reply without flags")
	}
	r.Accepted, r.Healing = b[0]&flagAccepted != 0, b[0]&flagStored != 0
	if r.Highest, b, err = causal.DecodeStamp(b[1:]); err != nil {
		return r, err
	}
	if r.Base, b, err = causal.DecodePosition(b); err != nil {
		return r, err
	}
	if len(b) > 0 {
		return r, malformed("%d bytes follow a write reply", len(b))
	}
	return r, nil
}

func appendReadReply(dst []byte, r *quorum.ReadReply) []byte {
	dst = append(dst, flagIf(r.HasStrong, flagHasStrong)|flagIf(r.HasStrong && r.Strong.Deleted, flagDeleted)|
		flagIf(r.Healing, flagHealing)|flagIf(r.Need > 0, flagNeeds))
	if r.Need > 0 {
		dst = binary.AppendUvarint(dst, r.Need)
	}
	if r.HasStrong {
		s := &r.Strong
		dst = binary.AppendUvarint(dst, s.Revision)
		dst = causal.AppendHLC(dst, s.Expiry)
		dst = causal.AppendStamp(dst, s.Stamp)
		dst = binary.AppendUvarint(dst, uint64(len(s.Covered)))
		for _, d := range s.Covered {
			dst = causal.AppendDot(dst, d)
		}
		dst = causal.AppendHLC(dst, s.Before)
		dst = append(binary.AppendUvarint(dst, uint64(len(s.Base))), s.Base...)
		dst = binary.AppendUvarint(dst, uint64(len(s.Value)))
		dst = append(dst, s.Value...)
	}
	return causal.AppendSet(dst, r.Set)
}

func decodeReadReply(b []byte) (r quorum.ReadReply, err error) {
	if len(b) == 0 || b[0] > flagHasStrong|flagDeleted|flagHealing|flagNeeds {
		return r, malformed("a read reply without flags")
	}
	r.HasStrong, r.Healing = b[0]&flagHasStrong != 0, b[0]&flagHealing != 0
	deleted, needs := b[0]&flagDeleted != 0, b[0]&flagNeeds != 0
	b = b[1:]
	if needs {
		var n int
		if r.Need, n = binary.Uvarint(b); n <= 0 || r.Need == 0 {
			return r, malformed("a read reply's need")
		}
		b = b[n:]
	}
	if r.HasStrong {
		if b, err = decodeStrong(b, &r.Strong); err != nil {
			return r, err
		}
		r.Strong.Deleted = deleted
	} else if deleted {
		return r, malformed("a read reply deletes what is not there")
	}
	r.Set, err = causal.DecodeSet(b)
	return r, err
}

func decodeStrong(b []byte, s *storage.Strong) (rest []byte, err error) {
	if s.Revision, b, err = decodeUvarint(b); err != nil {
		return nil, err
	}
	if s.Expiry, b, err = causal.DecodeHLC(b); err != nil {
		return nil, err
	}
	if s.Stamp, b, err = causal.DecodeStamp(b); err != nil {
		return nil, err
	}
	var n uint64
	if n, b, err = decodeUvarint(b); err != nil {
		return nil, err
	}
	if n > uint64(len(b)/dotBytesMin) {
		return nil, malformed("%d dots in %d bytes", n, len(b))
	}
	if n > 0 {
		s.Covered = make([]causal.Dot, n)
	}
	for i := range s.Covered {
		if s.Covered[i], b, err = causal.DecodeDot(b); err != nil {
			return nil, err
		}
	}
	if s.Before, b, err = causal.DecodeHLC(b); err != nil {
		return nil, err
	}
	if s.Base, b, err = decodeBytes(b); err != nil {
		return nil, err
	}
	s.Value, b, err = decodeBytes(b)
	return b, err
}

// appendReplyError appends the status and the error of a reply that failed.
func appendReplyError(dst []byte, err error) []byte {
	if stale, ok := errors.AsType[*quorum.StaleEpochError](err); ok {
		return binary.BigEndian.AppendUint64(append(dst, statusStale), uint64(stale.Epoch))
	}
	return kv.AppendError(append(dst, statusError), kv.AsError(err))
}

// splitReply returns the body of a reply, or the error that the peer answered with: a *kv.Error or a
// *quorum.StaleEpochError. decodeErr is set when the payload is neither.
func splitReply(b []byte) (body []byte, answer, decodeErr error) {
	if len(b) == 0 {
		return nil, nil, malformed("an empty reply")
	}
	switch status, b := b[0], b[1:]; status {
	case statusOK:
		return b, nil, nil
	case statusError:
		e, err := kv.DecodeError(b)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		return nil, e, nil
	case statusStale:
		if len(b) != 8 {
			return nil, nil, malformed("a stale epoch of %d bytes", len(b))
		}
		return nil, &quorum.StaleEpochError{Epoch: kv.Epoch(binary.BigEndian.Uint64(b))}, nil
	default:
		return nil, nil, malformed("reply status %d", status)
	}
}

func flagIf(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}
