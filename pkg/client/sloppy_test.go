package client

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
)

func TestSloppyAndHintedTravel(t *testing.T) {
	var r request
	Sloppy()(&r)
	require.True(t, operationOf(&r.Request).GetSloppy())
	require.False(t, operationOf(&(&request{}).Request).GetSloppy())
	var out Result
	out.fill(&kvwire.Result{Acks: 3, Hinted: 2}, nil)
	require.Equal(t, 2, out.Hinted)
	results := (&Client{}).batchResults(&kvpb.BatchRequest{}, &kvpb.BatchResponse{Results: []*kvpb.Result{{Acks: 3, Hinted: 1}}})
	require.Equal(t, 1, results[0].Hinted)
}
