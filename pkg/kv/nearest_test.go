package kv

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTheNearestNameIsTheOneThatWasMisspelled(t *testing.T) {
	known := []string{"consistency", "timeout", "ttl", "n", "r", "w"}
	for name, want := range map[string]string{
		"consistancy": "consistency", "Consistency": "consistency", "level": "ttl", "time-out": "timeout", "tt": "ttl", "N": "n", "consistency": "consistency",
	} {
		require.Equal(t, want, Nearest(name, known), name)
	}
	require.Empty(t, Nearest("x", nil))
	require.NotEmpty(t, Nearest(strings.Repeat("consistency", 1000), known))
	require.Equal(t, 3, editDistance("kitten", "sitting"))
}

// The distance with one row agrees with the definition by recursion.
func TestEditDistanceAgreesWithItsDefinition(t *testing.T) {
	var naive func(a, b string) int
	naive = func(a, b string) int {
		switch {
		case a == "":
			return len(b)
		case b == "":
			return len(a)
		case a[0] == b[0]:
			return naive(a[1:], b[1:])
		default:
			return 1 + min(naive(a[1:], b), naive(a, b[1:]), naive(a[1:], b[1:]))
		}
	}
	word := rapid.StringMatching(`[abc]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		if got, want := editDistance(a, b), naive(a, b); got != want {
			t.Fatalf("distance of %q and %q is %d, not %d", a, b, want, got)
		}
	})
}
