package causal

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// disk is the durable ceiling of a node whose process may die.
type disk struct {
	ceiling HLC
	fail    error
	calls   int
}

func (d *disk) persist(h HLC) error {
	d.calls++
	if d.fail != nil {
		return d.fail
	}
	d.ceiling = h
	return nil
}

var testEpoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func startClock(t require.TestingT, d *disk, wall *time.Time) *Clock {
	c, err := NewClock(farAhead(), ClockDeps{
		WallNow: func() time.Time { return *wall }, Persist: d.persist, Ceiling: d.ceiling,
	})
	require.NoError(t, err)
	return c
}

// TestClockNeverRepeatsNorGoesBack drives a clock through wall clock jumps, observations, failing disks and restarts.
func TestClockNeverRepeatsNorGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, wall := &disk{}, testEpoch
		c := startClock(t, d, &wall)
		var highest HLC // of everything issued or observed that this life knows about
		var issued HLC  // of everything issued in any life
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{
				"now", "now", "now", "wall", "observe", "restart", "extend", "fail", "heal", "promise",
			}).Draw(t, "step") {
			case "now":
				h, err := c.Now()
				if err != nil {
					if d.fail == nil || !errors.Is(err, d.fail) {
						t.Fatalf("Now failed on a healthy disk: %v", err)
					}
					continue
				}
				if h <= highest || h <= issued {
					t.Fatalf("issued %v after %v, in an earlier life %v", h, highest, issued)
				}
				if h >= d.ceiling || h >= c.Ceiling() {
					t.Fatalf("issued %v at or above the durable ceiling %v", h, d.ceiling)
				}
				if h < MakeHLC(wall.UnixMilli(), 0) {
					t.Fatalf("issued %v, below the wall clock", h)
				}
				highest, issued = h, h
			case "wall":
				wall = wall.Add(time.Duration(rapid.IntRange(-5000, 5000).Draw(t, "ms")) * time.Millisecond)
			case "observe":
				ahead := int64(rapid.IntRange(-2000, 2000).Draw(t, "ahead"))
				h := MakeHLC(wall.UnixMilli()+ahead, 3)
				news := h > c.Last()
				err := c.Observe(h)
				if refused := errors.Is(err, ErrClockSkew); refused != (news && ahead > 500) {
					t.Fatalf("%d ms ahead: %v", ahead, err)
				}
				if err == nil {
					highest = max(highest, h)
				}
			case "restart":
				c = startClock(t, d, &wall)
				highest = d.ceiling
			case "extend":
				if err := c.ExtendAhead(); (err != nil) != (d.fail != nil) && d.fail == nil {
					t.Fatalf("ExtendAhead: %v", err)
				}
			case "promise":
				h := MakeHLC(wall.UnixMilli()+int64(rapid.IntRange(0, 10_000).Draw(t, "promised")), 0)
				if err := c.Promise(h); err == nil && d.ceiling <= h {
					t.Fatalf("promised %v below a ceiling of %v", h, d.ceiling)
				}
			case "fail":
				d.fail = errors.New("no space left")
			case "heal":
				d.fail = nil
			}
			if c.Last() < highest {
				t.Fatalf("Last %v, want %v", c.Last(), highest)
			}
		}
	})
}

func TestClockStartsAboveThePersistedCeiling(t *testing.T) {
	d, wall := &disk{}, testEpoch
	first := startClock(t, d, &wall)
	_, err := first.Now()
	require.NoError(t, err)
	ceiling := d.ceiling
	require.Equal(t, MakeHLC(testEpoch.UnixMilli()+3000, 0), ceiling)

	second := startClock(t, d, &wall)
	require.Equal(t, 3*time.Second, second.Lead())
	h, err := second.Now()
	require.NoError(t, err)
	require.Greater(t, h, ceiling)

	// Once the wall clock has caught up nothing is left of the lead.
	wall = wall.Add(4 * time.Second)
	require.Zero(t, second.Lead())
}

func TestClockRunsOverIntoTheNextMillisecond(t *testing.T) {
	d, wall := &disk{}, testEpoch
	c := startClock(t, d, &wall)
	require.NoError(t, c.Observe(MakeHLC(wall.UnixMilli(), 0xffff)))
	h, err := c.Now()
	require.NoError(t, err)
	require.Equal(t, MakeHLC(wall.UnixMilli()+1, 0), h)
}

// TestClockStaysBelowItsCeilingToTheLastReading uses up every reading below several ceilings.
func TestClockStaysBelowItsCeilingToTheLastReading(t *testing.T) {
	d, wall := &disk{}, testEpoch
	c, err := NewClock(ClockConfig{MaxOffset: time.Second, CeilingAhead: time.Millisecond}, ClockDeps{
		WallNow: func() time.Time { return wall }, Persist: d.persist,
	})
	require.NoError(t, err)
	for range 3 << 16 {
		h, err := c.Now()
		require.NoError(t, err)
		if h >= d.ceiling {
			t.Fatalf("issued %v at a durable ceiling of %v", h, d.ceiling)
		}
	}
	require.GreaterOrEqual(t, d.calls, 3)
}

func TestClockReportsAFailedPersist(t *testing.T) {
	boom := errors.New("boom")
	d, wall := &disk{fail: boom}, testEpoch
	c := startClock(t, d, &wall)
	_, err := c.Now()
	require.ErrorIs(t, err, boom)
	require.Zero(t, c.Ceiling())
	d.fail = nil
	_, err = c.Now()
	require.NoError(t, err)
}

func TestExtendAheadKeepsNowFromWaiting(t *testing.T) {
	d, wall := &disk{}, testEpoch
	c := startClock(t, d, &wall)
	for range 100 {
		require.NoError(t, c.ExtendAhead())
		calls := d.calls
		_, err := c.Now()
		require.NoError(t, err)
		require.Equal(t, calls, d.calls, "Now had to persist")
		wall = wall.Add(time.Second)
	}
	require.Less(t, d.calls, 60, "the ceiling moves about every second call")
}

// TestClockHoldsNoMutexWhilePersisting would hang in the bubble otherwise: a goroutine blocked on a mutex keeps
// virtual time from passing, so that Persist never returned from its sleep.
func TestClockHoldsNoMutexWhilePersisting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var persisting, calls atomic.Int32
		c, err := NewClock(farAhead(), ClockDeps{WallNow: time.Now, Persist: func(HLC) error {
			if persisting.Add(1) != 1 {
				t.Error("two persisters at once")
			}
			time.Sleep(200 * time.Millisecond)
			persisting.Add(-1)
			calls.Add(1)
			return nil
		}})
		require.NoError(t, err)
		const workers, each = 8, 50
		var mu sync.Mutex
		seen := map[HLC]bool{}
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range each {
					h, err := c.Now()
					if err != nil {
						t.Error(err)
					}
					c.Last()
					mu.Lock()
					if seen[h] {
						t.Errorf("%v issued twice", h)
					}
					seen[h] = true
					mu.Unlock()
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		require.Len(t, seen, workers*each)
		require.Less(t, calls.Load(), int32(6), "waiters share one extension")
	})
}

func TestClockRefusesNonsense(t *testing.T) {
	deps := ClockDeps{WallNow: time.Now, Persist: func(HLC) error { return nil }}
	_, err := NewClock(ClockConfig{CeilingAhead: time.Second}, deps)
	require.ErrorContains(t, err, "max offset")
	_, err = NewClock(ClockConfig{MaxOffset: time.Second}, deps)
	require.ErrorContains(t, err, "ceiling")
	_, err = NewClock(farAhead(), ClockDeps{WallNow: time.Now})
	require.ErrorContains(t, err, "Persist")
}

func TestHLCFields(t *testing.T) {
	h := MakeHLC(1_760_000_000_123, 7)
	require.EqualValues(t, 1_760_000_000_123, h.Millis())
	require.EqualValues(t, 7, h.Counter())
	require.Equal(t, time.UnixMilli(1_760_000_000_123).UTC(), h.Time())
	require.Equal(t, "1760000000123.7", h.String())
	require.Equal(t, HLC(0), MakeHLC(-1, 0))
	require.Equal(t, HLC(1<<64-1), MakeHLC(1<<62, 0xffff), "the distant future does not wrap around")
}

func BenchmarkClockNow(b *testing.B) {
	c, err := NewClock(farAhead(), ClockDeps{WallNow: time.Now, Persist: func(HLC) error { return nil }})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Now(); err != nil {
			b.Fatal(err)
		}
	}
}

// farAhead is a configuration whose ceiling is far enough ahead that the tests can tell its moves apart.
func farAhead() ClockConfig {
	cfg := DefaultClockConfig()
	cfg.CeilingAhead = 3 * time.Second
	return cfg
}

func TestClockAcceptsWhatItIsPastAlready(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	c, err := NewClock(DefaultClockConfig(), ClockDeps{WallNow: func() time.Time { return now }, Persist: func(HLC) error { return nil }})
	require.NoError(t, err)
	ahead := MakeHLC(now.Add(10*time.Minute).UnixMilli(), 0)
	require.ErrorIs(t, c.Observe(ahead), ErrClockSkew)
	right := now
	now = now.Add(10 * time.Minute) // the wall clock is wrong for a while
	require.NoError(t, c.Observe(ahead))
	now = right
	require.NoError(t, c.Observe(ahead), "others that were led astray with this node are not refused by it")
	require.ErrorIs(t, c.Observe(ahead+1<<26), ErrClockSkew, "but they lead it no further")
}
