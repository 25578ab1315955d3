package storage

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRangeOfOperationsIsForgottenAndNothingElse(t *testing.T) {
	e := openMem(t)
	ids := []string{"", "a", "a\x00", "b", "b\xff", "c"}
	write(t, e, func(b *Batch) {
		for _, id := range ids {
			b.SetDedup(1, []byte(id), []byte("reply"))
			b.SetDedup(2, []byte(id), []byte("reply"))
		}
		b.SetApplied(1, Applied{Index: 7})
		b.SetStrong(1, []byte("b"), Strong{Revision: 3})
	})
	write(t, e, func(b *Batch) { b.DeleteDedupRange(1, []byte("a\x00"), []byte("c")) })
	for _, id := range ids {
		_, found, err := e.State().Dedup(1, []byte(id))
		require.NoError(t, err)
		require.Equal(t, id != "a\x00" && id[:min(1, len(id))] != "b", found, "%q", id)
		_, found, err = e.State().Dedup(2, []byte(id))
		require.NoError(t, err)
		require.True(t, found)
	}
	_, found, err := e.State().Strong(1, []byte("b"))
	require.NoError(t, err)
	require.True(t, found)
	require.Panics(t, func() {
		b := e.NewBatch()
		defer b.Close()
		b.DeleteDedupRange(1, []byte("b"), []byte("a"))
	})
}
