package transport

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

func TestScansAndTheirRepliesArriveAsTheyWereSent(t *testing.T) {
	for _, r := range []quorum.ScanRequest{
		{Partition: 3, Epoch: 7, Limit: 1},
		{Partition: 3, Epoch: 7, Prefix: []byte("p"), After: []byte("p\x00q"), Limit: kv.ListItemsMax},
	} {
		got, err := decodeScan(7, appendScan(nil, &r))
		require.NoError(t, err)
		require.Equal(t, r, got)
	}
	d := causal.Dot{Node: 1, Time: 5}
	set := causal.SiblingSet{}.Put(causal.Sibling{ID: d, Dot: d, Stamp: causal.Stamp{Time: 5, Node: 1}, Value: []byte("v")}, nil)
	reply := quorum.ScanReply{More: true, Rows: []quorum.ScanRow{
		{Key: []byte("a"), ReadReply: quorum.ReadReply{Set: set}},
		{Key: []byte("b"), ReadReply: quorum.ReadReply{HasStrong: true, Strong: storage.Strong{Revision: 3, Value: []byte("s")}}},
	}}
	b := appendScanReply(nil, &reply)
	got, err := decodeScanReply(b)
	require.NoError(t, err)
	require.Equal(t, reply, got)
	for cut := range b {
		_, err := decodeScanReply(b[:cut])
		require.Error(t, err, "cut at %d", cut)
	}
	_, err = decodeScanReply([]byte{flagMore, 0})
	require.Error(t, err, "what goes on has a row to go on from")
	_, err = decodeScan(7, appendScan(nil, &quorum.ScanRequest{Limit: kv.ListItemsMax + 2}))
	require.Error(t, err)
}
