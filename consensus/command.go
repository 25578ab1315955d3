package consensus

import (
	"encoding/binary"
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A command of the key-value machine is a format byte, an operation, a kind of condition with its version, the key and
// the value. What later versions add (operation ids, expiry) gets another format byte: a replica that does not know it
// stops rather than guess.
const commandFormat byte = 1

const (
	commandPut    byte = 1
	commandDelete byte = 2
)

// encodeCommand returns the command that carries op out.
func encodeCommand(op WriteOp) []byte {
	dst := make([]byte, 0, 3+3*binary.MaxVarintLen32+binary.MaxVarintLen64+len(op.Key)+len(op.Value))
	verb := commandPut
	if op.Delete {
		verb = commandDelete
	}
	dst = append(dst, commandFormat, verb, byte(op.Condition.Kind))
	if op.Condition.Kind == kv.ConditionVersion {
		dst = binary.AppendUvarint(dst, op.Condition.Version)
	}
	dst = appendBytes(dst, op.Key)
	if !op.Delete {
		dst = appendBytes(dst, op.Value)
	}
	return dst
}

// decodeCommand is the inverse of encodeCommand. Key and value alias b.
func decodeCommand(b []byte) (WriteOp, error) {
	r := reader{b: b}
	if f := r.byte("command format"); r.err == nil && f != commandFormat {
		return WriteOp{}, fmt.Errorf("%w: unknown command format %d", ErrUnreadable, f)
	}
	var op WriteOp
	switch verb := r.byte("operation"); verb {
	case commandPut:
	case commandDelete:
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
	op.Key = r.bytes("key")
	if !op.Delete {
		op.Value = r.bytes("value")
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after the command:")
	}
	if r.err != nil {
		return WriteOp{}, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return op, nil
}
