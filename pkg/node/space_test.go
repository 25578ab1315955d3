package node

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
)

func TestWatermarkIsTheSmallerOfBytesAndShare(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		w     Watermark
		total uint64
		want  uint64
	}{
		{DefaultWatermark(), 1000 * gib, gib},
		{DefaultWatermark(), 10 * gib, 10 * gib / 100 * 5},
		{DefaultWatermark(), 0, 0},
		{DefaultWatermark(), 1<<64 - 1, gib},
		{Watermark{FreeBytes: gib}, 1000 * gib, 0},
		{Watermark{FreePercent: 50}, 1000 * gib, 0},
	} {
		require.Equal(t, c.want, c.w.bytes(c.total), "%+v of %d", c.w, c.total)
	}
	require.NoError(t, Watermark{}.Validate())
	require.NoError(t, DefaultWatermark().Validate())
	require.Error(t, Watermark{FreeBytes: -1}.Validate())
	require.Error(t, Watermark{FreePercent: -1}.Validate())
	require.Error(t, Watermark{FreePercent: 51}.Validate())
}

func TestWritesGoOnOnlyWithAQuarterMoreThanTheWatermark(t *testing.T) {
	w := Watermark{FreeBytes: 100, FreePercent: 50}
	var s space
	for _, step := range []struct {
		available    uint64
		low, changed bool
	}{
		{1000, false, false},
		{100, false, false},
		{99, true, true},
		{0, true, false},
		{100, true, false},
		{124, true, false},
		{125, false, true},
		{100, false, false},
		{99, true, true},
	} {
		require.Equal(t, step.changed, s.look(w, step.available, 10_000), "%d available", step.available)
		require.Equal(t, step.low, s.low.Load(), "%d available", step.available)
	}
	s = space{}
	s.look(w, 0, 0)
	require.False(t, s.low.Load(), "a disk of unknown size has no watermark")
}

func TestInjectorChangesAllOfItsFaultsOrNone(t *testing.T) {
	i := &Injector{network: transport.NewFaults(1), disk: storage.NewFaultFS(storage.NewMemFS())}
	now := time.Unix(1_000_000, 0)
	wall := i.wallNow(func() time.Time { return now })
	require.Equal(t, now, wall())
	set := FaultSet{
		Network: []transport.Rule{{Cut: true}},
		Disk:    storage.DiskFault{Mode: storage.DiskLow}, Clock: -10 * time.Minute,
	}
	require.NoError(t, i.Set(set))
	require.Equal(t, set, i.InForce())
	require.Equal(t, now.Add(-10*time.Minute), wall())
	require.Equal(t, storage.DiskLow, i.disk.Fault().Mode)
	for _, bad := range []FaultSet{
		{Network: []transport.Rule{{}}},
		{Disk: storage.DiskFault{Mode: storage.DiskSlow}},
		{Clock: 25 * time.Hour},
		{Clock: -25 * time.Hour},
	} {
		require.Error(t, i.Set(bad))
		require.Equal(t, set, i.InForce())
	}
	require.NoError(t, i.Set(FaultSet{Clock: skewMax}))
	require.Equal(t, FaultSet{Network: []transport.Rule{}, Clock: skewMax}, i.InForce())
	i.Clear()
	require.Equal(t, FaultSet{Network: []transport.Rule{}}, i.InForce())
	require.Equal(t, now, wall())
}
