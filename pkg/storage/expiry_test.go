package storage

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
)

func TestExpiryNotesComeInTheOrderOfTheirTimes(t *testing.T) {
	e := openMem(t)
	const last = ^causal.HLC(0)
	write(t, e, func(b *Batch) {
		b.SetExpiry(1, 300, []byte("a"))
		b.SetExpiry(1, 7, []byte("z"))
		b.SetExpiry(1, 7, []byte("y\xff"))
		b.SetExpiry(1, last, []byte("b"))
		b.SetExpiry(2, 1, []byte("other group"))
		b.SetStrong(1, []byte("k"), Strong{Value: []byte("v"), Expiry: 300})
	})
	scan := func(until causal.HLC, most int) (keys []string) {
		require.NoError(t, e.State().ScanExpiry(1, until, func(_ causal.HLC, key []byte) (bool, error) {
			keys = append(keys, string(key))
			return len(keys) < most, nil
		}))
		return keys
	}
	require.Empty(t, scan(6, 9))
	require.Equal(t, []string{"y\xff", "z"}, scan(7, 9))
	require.Equal(t, []string{"y\xff"}, scan(7, 1))
	require.Equal(t, []string{"y\xff", "z", "a"}, scan(300, 9))
	require.Equal(t, []string{"y\xff", "z", "a", "b"}, scan(last, 9))
	write(t, e, func(b *Batch) { b.DeleteExpiry(1, 7, []byte("z")) })
	require.Equal(t, []string{"y\xff", "a", "b"}, scan(last, 9))
}
