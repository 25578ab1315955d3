package transport

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/quorum"
)

var _ quorum.Scanner = (*Mux)(nil)

// scanRowBytesMin is the least that a row takes: a key's length and byte, a reply's length and flags.
const scanRowBytesMin = 4

// Scan implements quorum.Scanner: it asks the peer for its part of a listing and waits for the answer.
func (m *Mux) Scan(ctx context.Context, to kv.NodeID, r quorum.ScanRequest) (quorum.ScanReply, error) {
	if to == m.self {
		return wait(ctx, m.deadline(ctx, time.Now()), false, func(reply func(quorum.ScanReply, error)) { m.handler.HandleScan(to, r, reply) })
	}
	body, err := m.await(ctx, to, kindScan, false, func(dst []byte) []byte { return appendScan(dst, &r) })
	if err != nil {
		return quorum.ScanReply{}, err
	}
	reply, err := decodeScanReply(body)
	if err != nil {
		return reply, kv.Errorf(kv.CodeInternal, "unreadable listing of node %d: %w", to, err)
	}
	return reply, nil
}

func appendScan(dst []byte, r *quorum.ScanRequest) []byte {
	dst = appendTarget(dst, r.Partition, r.Prefix)
	dst = binary.AppendUvarint(dst, uint64(r.Limit))
	return append(dst, r.After...)
}

func decodeScan(epoch kv.Epoch, b []byte) (r quorum.ScanRequest, err error) {
	r.Epoch = epoch
	if r.Partition, r.Prefix, b, err = decodeTarget(b); err != nil {
		return r, err
	}
	limit, b, err := decodeUvarint(b)
	switch {
	case err != nil:
		return r, err
	case limit < 1 || limit > kv.ListItemsMax+1:
		return r, malformed("a scan of %d rows", limit)
	case len(b) > 0:
		r.After = b
	}
	r.Limit = int(limit)
	return r, nil
}

func appendScanReply(dst []byte, r *quorum.ScanReply) []byte {
	dst = append(dst, flagIf(r.More, flagMore)|flagIf(r.Healing, flagPartHealing))
	dst = binary.AppendUvarint(dst, uint64(len(r.Rows)))
	var row []byte
	for i := range r.Rows {
		dst = binary.AppendUvarint(dst, uint64(len(r.Rows[i].Key)))
		dst = append(dst, r.Rows[i].Key...)
		row = appendReadReply(row[:0], &r.Rows[i].ReadReply)
		dst = binary.AppendUvarint(dst, uint64(len(row)))
		dst = append(dst, row...)
	}
	return dst
}

// Flags of a scan's reply: it goes on; the replica heals.
const (
	flagMore        = 1 << 0
	flagPartHealing = 1 << 1
)

func decodeScanReply(b []byte) (r quorum.ScanReply, err error) {
	if len(b) == 0 || b[0] > flagMore|flagPartHealing {
		return r, malformed("a scan's reply without flags")
	}
	r.More, r.Healing = b[0]&flagMore != 0, b[0]&flagPartHealing != 0
	n, b, err := decodeUvarint(b[1:])
	if err != nil {
		return r, err
	}
	if n > uint64(len(b)/scanRowBytesMin) || n == 0 && r.More {
		return r, malformed("%d rows in %d bytes", n, len(b))
	}
	r.Rows = make([]quorum.ScanRow, n)
	for i := range r.Rows {
		var row []byte
		if r.Rows[i].Key, b, err = decodeBytes(b); err != nil {
			return r, err
		}
		if row, b, err = decodeBytes(b); err != nil {
			return r, err
		}
		if r.Rows[i].ReadReply, err = decodeReadReply(row); err != nil {
			return r, err
		}
	}
	if len(b) > 0 {
		return r, malformed("%d bytes follow a scan's reply", len(b))
	}
	return r, nil
}
