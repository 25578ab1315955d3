package causal

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func drawSessionKey(t *rapid.T) SessionKey {
	k := SessionKey{
		Partition: kv.PartitionID(rapid.IntRange(0, 300).Draw(t, "partition")), Hash: rapid.Uint64Range(1, 60).Draw(t, "hash"),
		Index: rapid.Uint64Range(0, 1000).Draw(t, "index"), Held: rapid.Bool().Draw(t, "held"),
	}
	for range rapid.IntRange(0, SessionDotsMax).Draw(t, "dots") {
		k.Dots = append(k.Dots, SessionDot{
			Dot:  Dot{Node: kv.NodeID(rapid.IntRange(1, 5).Draw(t, "node")), Time: HLC(rapid.Uint64Range(1, 1<<62).Draw(t, "time"))},
			Base: Position{Term: rapid.Uint64Range(1, 9).Draw(t, "term"), Index: rapid.Uint64().Draw(t, "base")},
		})
	}
	return k
}

// Whatever a session has seen of a key that is held, its token says so for ever: by the key itself, or by a floor at or above it.
func TestSessionForgetsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Session{}
		latest := map[[2]uint64]SessionKey{}
		for range rapid.IntRange(0, 200).Draw(t, "operations") {
			k := drawSessionKey(t)
			k.Held = k.Held || s.Full(k.Partition, k.Hash)
			s = s.With(k)
			latest[[2]uint64{uint64(k.Partition), k.Hash}] = k
		}
		token := s.Encode()
		require.LessOrEqual(t, len(token), SessionBytesMax)
		back, err := DecodeSession(token)
		require.NoError(t, err)
		require.Equal(t, token, back.Encode())
		for at, want := range latest {
			if got, ok := back.Key(want.Partition, at[1]); ok {
				require.Equal(t, want, got)
				continue
			}
			floor, everything := back.Floor(want.Partition)
			require.True(t, everything || floor.Index >= want.Index, "%+v is below %+v", floor, want)
			for _, d := range want.Dots {
				require.GreaterOrEqual(t, floor.Time, d.Dot.Time)
				require.GreaterOrEqual(t, back.Time, d.Dot.Time)
			}
		}
	})
}

func TestDamagedSessionIsRefused(t *testing.T) {
	s := (&Session{}).With(SessionKey{Partition: 3, Hash: 9, Index: 7, Dots: []SessionDot{{Dot: Dot{Node: 1, Time: 5}}}, Held: true})
	token := s.Encode()
	for i := range token {
		damaged := append([]byte(nil), token...)
		damaged[i] ^= 0x40
		_, err := DecodeSession(damaged)
		require.ErrorIs(t, err, ErrBadSession)
		_, err = DecodeSession(token[:i])
		if i > 0 {
			require.ErrorIs(t, err, ErrBadSession)
		}
	}
	fresh, err := DecodeSession([]byte(kv.SessionNew))
	require.NoError(t, err)
	require.Zero(t, fresh.Time)
}

func FuzzDecodeSession(f *testing.F) {
	f.Add((&Session{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSession(b); err == nil && len(b) > 3 {
			if _, err := DecodeSession(s.Encode()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
