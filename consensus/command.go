package consensus

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A command of the key-value machine is a format byte and a body: an operation, a kind of condition with its version, the
// key and the value. The later format has between the two a byte of flags and the operation id that they may announce.
// It is written only where it is needed, so that a write without an id costs what it always did. What further versions
// add gets another format byte or operation: a replica that does not know it stops rather than guess.
const (
	commandFormat     byte = 1
	commandFormatMore byte = 2
)

// Flags of the later format.
const (
	commandHasID byte = 1 << iota
	commandHasGuard
)

// Operations.
const (
	commandPut    byte = 1
	commandDelete byte = 2
	commandBatch  byte = 3
	commandPutTTL byte = 4
	commandExpire byte = 5
	// commandPutKeep is a put whose value expires when the one that it replaces would.
	commandPutKeep byte = 6
	// commandSettle takes an eventual version into the state.
	commandSettle byte = 7
)

// command is a command as it was decoded. Its slices alias the entry.
type command struct {
	WriteOp
	// fingerprint digests the body, where there is an id: the same id with another body is another request.
	fingerprint uint64
	// expire is set in a command that removes expired values, which has nothing of a WriteOp.
	expire []Expiring
}

// encodeCommand returns the command that carries op out.
func encodeCommand(op WriteOp) []byte {
	const idBytesMax = 2*binary.MaxVarintLen64 + binary.MaxVarintLen32 + 8 + 1
	size := 4 + 5*binary.MaxVarintLen32 + binary.MaxVarintLen64 + len(op.Key) + len(op.Value)
	for i := range op.Batch {
		size += 3 + 4*binary.MaxVarintLen32 + binary.MaxVarintLen64 + len(op.Batch[i].Key) + len(op.Batch[i].Value)
	}
	if op.ID.IsZero() && len(op.Batch) == 0 && op.TTL == 0 && op.Guard == nil && op.Settled == nil {
		return appendWrite(append(make([]byte, 0, size), commandFormat), &op)
	}
	flags := byte(0)
	if !op.ID.IsZero() {
		flags |= commandHasID
		size += idBytesMax + len(op.ID.Session)
	}
	if op.Guard != nil {
		flags |= commandHasGuard
		size += guardBytes(op.Guard) + settledBytesMax
	}
	dst := append(make([]byte, 0, size), commandFormatMore, flags)
	if op.Guard != nil {
		dst = appendGuard(dst, op.Guard)
	}
	if op.ID.IsZero() {
		return appendBody(dst, &op)
	}
	dst = appendBytes(dst, op.ID.Session)
	dst = binary.AppendUvarint(dst, op.ID.Sequence)
	dst = binary.AppendUvarint(dst, op.ID.Floor)
	// The proposer digests the body, so that what counts as the same request does not depend on who applies it.
	at := len(dst)
	dst = appendBody(append(dst, make([]byte, 8)...), &op)
	binary.LittleEndian.PutUint64(dst[at:], xxhash.Sum64(dst[at+8:]))
	return dst
}

// appendBody appends what the command does: a write, or a batch of them.
func appendBody(dst []byte, op *WriteOp) []byte {
	if len(op.Batch) == 0 {
		return appendWrite(dst, op)
	}
	dst = binary.AppendUvarint(append(dst, commandBatch), uint64(len(op.Batch)))
	for i := range op.Batch {
		dst = appendWrite(dst, &op.Batch[i])
	}
	return dst
}

// appendWrite appends the body of a put or a delete.
func appendWrite(dst []byte, op *WriteOp) []byte {
	verb := commandPut
	switch {
	case op.Settled != nil:
		dead := byte(0)
		if op.Delete {
			dead = 1
		}
		dst = appendSettled(append(dst, commandSettle, dead), op.Settled)
		return appendBytes(appendBytes(dst, op.Key), op.Value)
	case op.Delete:
		verb = commandDelete
	case op.TTL == kv.TTLKeep:
		verb = commandPutKeep
	case op.TTL != 0:
		verb = commandPutTTL
	}
	dst = append(dst, verb, byte(op.Condition.Kind))
	if op.Condition.Kind == kv.ConditionVersion {
		dst = binary.AppendUvarint(dst, op.Condition.Version)
	}
	if verb == commandPutTTL {
		dst = binary.AppendUvarint(dst, uint64(op.TTL.Milliseconds()))
	}
	dst = appendBytes(dst, op.Key)
	if !op.Delete {
		dst = appendBytes(dst, op.Value)
	}
	return dst
}

// decodeCommand is the inverse of encodeCommand.
func decodeCommand(b []byte) (c command, err error) {
	if err := c.decode(b); err != nil {
		return command{}, err
	}
	return c, nil
}

// decode is decodeCommand into c, which is zero before, and meaningless after an error.
func (c *command) decode(b []byte) error {
	r := reader{b: b}
	verb, expiring := byte(0), false
	switch f := r.byte("command format"); f {
	case commandFormat:
	case commandFormatMore:
		c.decodeHead(&r)
		if expiring = true; r.err == nil && len(r.b) > 0 {
			verb = r.b[0]
		}
	default:
		if r.err == nil {
			return fmt.Errorf("%w: unknown command format %d", ErrUnreadable, f)
		}
	}
	switch verb {
	case commandBatch:
		c.readBatch(&r)
	case commandExpire:
		c.readExpire(&r)
	case commandSettle:
		c.readSettle(&r)
	default:
		readWrite(&r, &c.WriteOp, expiring)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after the command:")
	}
	if r.err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return nil
}

func (c *command) decodeHead(r *reader) {
	flags := r.byte("flags")
	if flags&^(commandHasID|commandHasGuard) != 0 {
		r.fail("flags")
	}
	if flags&commandHasGuard != 0 {
		c.Guard = readGuard(r)
	}
	if flags&commandHasID == 0 {
		return
	}
	c.ID = kv.OpID{Session: r.bytes("session"), Sequence: r.uvarint("sequence"), Floor: r.uvarint("floor")}
	c.fingerprint = r.uint64("fingerprint")
	if r.err == nil && (c.ID.IsZero() || c.ID.Floor > c.ID.Sequence) {
		r.fail("operation id")
	}
}

// readSettle reads a settled version. Without a guard it would overwrite what it must not.
func (c *command) readSettle(r *reader) {
	r.byte("operation")
	dead := r.byte("deleted")
	c.Settled = readSettled(r)
	c.Key, c.Value = r.bytes("key"), r.bytes("value")
	if c.Delete = dead == 1; r.err == nil && (dead > 1 || c.Delete && len(c.Value) > 0 || c.Guard == nil || !c.ID.IsZero()) {
		r.fail("settled version")
	}
}

func (c *command) readBatch(r *reader) {
	r.byte("operation")
	n := r.count("writes")
	if r.err == nil && n == 0 {
		r.fail("empty batch:")
	}
	if r.err != nil {
		return
	}
	c.Batch = make([]WriteOp, n)
	for i := range c.Batch {
		readWrite(r, &c.Batch[i], true)
	}
}

// readWrite reads what appendWrite wrote. The first format has no values that expire.
func readWrite(r *reader, op *WriteOp, expiring bool) {
	verb := r.byte("operation")
	switch {
	case verb == commandPut || verb == commandPutTTL && expiring:
	case verb == commandPutKeep && expiring:
		op.TTL = kv.TTLKeep
	case verb == commandDelete:
		op.Delete = true
	default:
		r.fail("operation")
	}
	op.Condition.Kind = kv.ConditionKind(r.byte("condition"))
	switch op.Condition.Kind {
	case kv.ConditionNone, kv.ConditionExists:
	case kv.ConditionVersion:
		op.Condition.Version = r.uvarint("version")
	default:
		r.fail("condition")
	}
	if verb == commandPutTTL {
		op.TTL = time.Duration(r.bounded("ttl", uint64(kv.TTLMax/time.Millisecond))) * time.Millisecond
		if r.err == nil && op.TTL == 0 {
			r.fail("ttl")
		}
	}
	op.Key = r.bytes("key")
	if !op.Delete {
		op.Value = r.bytes("value")
	}
}
