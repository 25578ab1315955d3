package causal

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestSeenCoversWhatItWasGiven compares with the plain list of what was given.
func TestSeenCoversWhatItWasGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, first, second := drawVector(t, "vector"), drawDots(t, "first"), drawDots(t, "second")
		s := Seen{Vector: v}.With(first...).With(second...)
		require.True(t, s.valid())
		var given []Dot
		for _, d := range append(first, second...) {
			if !v.Covers(d) && !slices.Contains(given, d) {
				given = append(given, d)
			}
		}
		forgotten := 0
		for _, d := range given {
			if !s.Covers(d) {
				forgotten++
				for _, kept := range s.Dots {
					require.LessOrEqual(t, d.Time, kept.Time, "the oldest are forgotten first")
				}
			}
		}
		require.LessOrEqual(t, forgotten, max(0, len(given)-SeenDotsMax))
		for _, d := range universe() {
			require.Equal(t, v.Covers(d) || slices.Contains(s.Dots, d), s.Covers(d))
			require.False(t, s.Covers(d) && !v.Covers(d) && !slices.Contains(given, d), "%v was never given", d)
		}
		require.GreaterOrEqual(t, s.Latest(), v.Latest())
		for _, d := range s.Dots {
			require.LessOrEqual(t, d.Time, s.Latest())
		}
	})
}

func TestContextWithDotsThatItsVectorCoversIsRefused(t *testing.T) {
	for name, s := range map[string]Seen{
		"covered":  {Vector: Vector{{1, 5}}, Dots: []Dot{{1, 5}}},
		"twice":    {Dots: []Dot{{1, 5}, {1, 5}}},
		"unsorted": {Dots: []Dot{{2, 5}, {1, 5}}},
		"too many": {Dots: make([]Dot, SeenDotsMax+1)},
	} {
		if name == "too many" {
			for i := range s.Dots {
				s.Dots[i] = Dot{1, HLC(i + 1)}
			}
		}
		_, err := DecodeContext([]byte("k"), EncodeSeen([]byte("k"), s))
		require.ErrorIs(t, err, ErrBadContext, name)
	}
}
