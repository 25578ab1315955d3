package storage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The format byte that every row starts with. A number stands for one version of one kind's encoding and is never given
// to another: a new version of a kind takes the next free number, and a row read as the wrong kind is an error.
const (
	formatOpaque    byte = 0x01 // bytes of the caller: node, dedup and metadata rows
	formatHardState byte = 0x02
	formatTruncated byte = 0x03
	formatEntry     byte = 0x04
	formatApplied   byte = 0x05
	formatStrong    byte = 0x06
	formatSiblings  byte = 0x07
	formatIndex     byte = 0x08
	formatNode      byte = 0x09
	formatSegment   byte = 0x0a
	formatRepair    byte = 0x0b
	formatHint      byte = 0x0c
)

// A row is: format byte, payload, checksum. The checksum covers the row's key too, so that a row that turns up under
// another key, by a bug or by a disk that mixed up two writes, does not check out.
const (
	checksumBytes = 4
	rowBytesMin   = 1 + checksumBytes
)

// rowChecksum is the CRC-32C of the row's key, format byte and payload.
func rowChecksum(key, formatAndPayload []byte) uint32 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // shared and computed once by the library
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, formatAndPayload)
}

// sealRow fills row, which must have room for exactly head, tail and rowBytesMin more.
func sealRow(row []byte, format byte, key, head, tail []byte) {
	row[0] = format
	n := 1 + copy(row[1:], head)
	n += copy(row[n:], tail)
	binary.BigEndian.PutUint32(row[n:], rowChecksum(key, row[:n]))
}

// verifyRow checks a row of any format against its checksum.
func verifyRow(row, key []byte) error {
	if len(row) < rowBytesMin {
		return corruptRow(key, "has %d bytes, fewer than a format byte and a checksum", len(row))
	}
	body := row[:len(row)-checksumBytes]
	want := binary.BigEndian.Uint32(row[len(body):])
	if got := rowChecksum(key, body); got != want {
		return corruptRow(key, "has checksum %08x where its content has %08x", want, got)
	}
	return nil
}

// openRow checks a row and returns its payload, which aliases row.
func openRow(row []byte, format byte, key []byte) ([]byte, error) {
	if err := verifyRow(row, key); err != nil {
		return nil, err
	}
	body := row[:len(row)-checksumBytes]
	// The checksum goes first: a damaged format byte is damage, not a version that somebody else knows.
	if body[0] != format {
		return nil, corruptRow(key, "has format %d where %d is known", body[0], format)
	}
	return body[1:], nil
}

// corruptRow returns an error wrapping ErrCorruption that names the row.
func corruptRow(key []byte, format string, args ...any) error {
	return &corruptionError{detail: describeKey(key) + " " + fmt.Sprintf(format, args...)}
}

// corruptionError is ErrCorruption with what is known about the place.
type corruptionError struct {
	detail string
	cause  error // nil when this package found the damage itself
}

func (e *corruptionError) Error() string {
	if e.cause == nil {
		return ErrCorruption.Error() + ": " + e.detail
	}
	return ErrCorruption.Error() + ": " + e.detail + ": " + oneLine(e.cause)
}

func (e *corruptionError) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrCorruption}
	}
	return []error{ErrCorruption, e.cause}
}
