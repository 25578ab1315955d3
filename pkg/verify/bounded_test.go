package verify

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// boundedHistory has two puts of one key, one after the other, the second acknowledged at 3 s, and a bounded read that begins at 10 s.
func boundedHistory(read Op, second kv.Level) *History {
	h := NewHistory()
	h.ops = []Op{
		{Kind: kv.OpPut, Level: kv.LevelStrong, Key: "k", Value: "old", Call: 1, Return: 2, At: 0, Until: time.Second, Outcome: OutcomeOK},
		{Kind: kv.OpPut, Level: second, Key: "k", Value: "new", Call: 3, Return: 4, At: 2 * time.Second, Until: 3 * time.Second, Outcome: OutcomeOK},
	}
	read.Kind, read.Level, read.Key, read.Outcome = kv.OpGet, kv.LevelBounded, "k", OutcomeOK
	read.ID, read.Call, read.Return, read.At = 2, 5, 6, 10*time.Second
	if read.Until == 0 {
		read.Until = read.At + time.Millisecond
	}
	h.ops = append(h.ops, read)
	return h
}

func TestBoundedReadsAreHeldToWhatTheySay(t *testing.T) {
	for _, test := range []struct {
		name   string
		read   Op
		second kv.Level
		valid  bool
	}{
		{"the newest", Op{Found: true, Result: "new", Staleness: 0}, kv.LevelStrong, true},
		{"old within the bound", Op{Found: true, Result: "old", Staleness: 8 * time.Second, MaxStaleness: 8 * time.Second}, kv.LevelStrong, true},
		{"old beyond the bound", Op{Found: true, Result: "old", Staleness: 6 * time.Second, MaxStaleness: 8 * time.Second}, kv.LevelStrong, false},
		{"old beyond the bound, the newer one eventual", Op{Found: true, Result: "old", Staleness: 6 * time.Second, MaxStaleness: 8 * time.Second}, kv.LevelEventual, false},
		{"old, the newer one of one replica alone", Op{Found: true, Result: "old", MaxStaleness: time.Second}, kv.LevelLocal, true},
		{"absent beyond the bound", Op{MaxStaleness: time.Second}, kv.LevelStrong, false},
		{"a bound above what was asked for", Op{Found: true, Result: "new", Staleness: 2 * time.Second, MaxStaleness: time.Second}, kv.LevelStrong, false},
		{"a bound as long as the read took", Op{Found: true, Result: "new", Staleness: 2 * time.Second, MaxStaleness: time.Second, Until: 12 * time.Second}, kv.LevelStrong, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := CheckBounded(boundedHistory(test.read, test.second), true)
			require.Equal(t, test.valid, res.Valid, "%v", res.Anomalies)
			require.Equal(t, 1, res.Operations)
		})
	}
}
