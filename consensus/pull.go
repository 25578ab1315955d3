package consensus

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Puller asks peers for the data of snapshots.
type Puller interface {
	// Pull hands the request to the peer's Store.ServePull and returns its answer, which is the caller's to keep. It blocks
	// until then or until ctx is done. What it carries must never delay what Sender does: an answer may be a megabyte.
	Pull(ctx context.Context, to kv.NodeID, request []byte) ([]byte, error)
}

// A snapshot's data is pulled by the replica that needs it, one request a chunk. A request names the last key that the
// puller has, so that it may be repeated when its answer is lost, and the peer keeps no more than the snapshot itself.
const pullFormat byte = 1

type pullVerb byte

const (
	// pullOpen takes a snapshot and returns its first rows.
	pullOpen pullVerb = 1
	// pullNext returns the rows behind a key.
	pullNext pullVerb = 2
	// pullClose gives the snapshot up.
	pullClose pullVerb = 3
)

// pullRequest is one request.
type pullRequest struct {
	verb  pullVerb
	group kv.GroupID
	// least is the index that the snapshot must reach, of a pullOpen.
	least uint64
	// session and after are of a pullNext; session also of a pullClose.
	session uint64
	after   []byte
}

func (p *pullRequest) append(dst []byte) []byte {
	dst = append(dst, pullFormat, byte(p.verb))
	dst = binary.AppendUvarint(dst, uint64(p.group))
	dst = binary.AppendUvarint(dst, p.least)
	dst = binary.LittleEndian.AppendUint64(dst, p.session)
	return appendBytes(dst, p.after)
}

// open returns a reader of a message, behind its first byte, which stands for how it is written.
func open(b []byte, format byte, what string) (reader, error) {
	r := reader{b: b}
	if f := r.byte("format"); r.err == nil && f != format {
		return r, fmt.Errorf("%w: unknown format %d of %s", ErrBadFrame, f, what)
	}
	return r, nil
}

// end says what is wrong with a message that was read: it was cut short, means nothing, or something stands behind it.
func (r *reader) end(means bool, what string) error {
	switch {
	case r.err != nil:
		return fmt.Errorf("%w: %w", ErrBadFrame, r.err)
	case !means || len(r.b) > 0:
		return fmt.Errorf("%w: it is not %s", ErrBadFrame, what)
	}
	return nil
}

func decodePullRequest(b []byte) (p pullRequest, err error) {
	r, err := open(b, pullFormat, "a pull")
	if err != nil {
		return p, err
	}
	p.verb = pullVerb(r.byte("verb"))
	p.group = kv.GroupID(r.bounded("group", uint64(^kv.GroupID(0))))
	p.least = r.uvarint("index")
	p.session = r.uint64("session")
	p.after = r.bytes("key")
	return p, r.end(p.verb >= pullOpen && p.verb <= pullClose, "a pull")
}

// pullStatus says how a request ended. An error would not survive the way back as itself.
type pullStatus byte

const (
	pullOK pullStatus = 1
	// pullBusy: as many snapshots as may be are open, or this one is being read. Ask again.
	pullBusy pullStatus = 2
	// pullGone: there is no such snapshot, or none that reaches the index. Begin anew.
	pullGone pullStatus = 3
)

// pullReply answers a pullRequest.
type pullReply struct {
	status  pullStatus
	session uint64
	// next is the after of the following request, nil when these are the last rows.
	next []byte
	rows []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pullReplyBytesMax is what a reply takes beside next and rows: format, status, session, the length of next, checksum.
const pullReplyBytesMax = 1 + 1 + 8 + binary.MaxVarintLen64 + 4

func (p *pullReply) append(dst []byte) []byte {
	dst = append(dst, pullFormat, byte(p.status))
	dst = binary.LittleEndian.AppendUint64(dst, p.session)
	dst = appendBytes(dst, p.next)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(p.rows, castagnoli))
	return append(dst, p.rows...)
}

// decodePullReply reads a reply, whose slices alias b.
func decodePullReply(b []byte) (p pullReply, err error) {
	r, err := open(b, pullFormat, "a chunk")
	if err != nil {
		return p, err
	}
	p.status = pullStatus(r.byte("status"))
	p.session = r.uint64("session")
	if p.next = r.bytes("key"); len(p.next) == 0 {
		p.next = nil
	}
	if r.err == nil && len(r.b) < 4 {
		r.fail("checksum")
	}
	if r.err != nil {
		return p, fmt.Errorf("%w: %w", ErrBadFrame, r.err)
	}
	want := binary.LittleEndian.Uint32(r.b)
	p.rows = r.b[4:]
	if got := crc32.Checksum(p.rows, castagnoli); got != want {
		return p, fmt.Errorf("%w: a chunk has checksum %08x where its rows have %08x", ErrBadFrame, want, got)
	}
	if p.status < pullOK || p.status > pullGone {
		return p, fmt.Errorf("%w: status %d of a chunk", ErrBadFrame, p.status)
	}
	return p, nil
}
