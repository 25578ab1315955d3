package model

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// draw makes up a mix that is too large to be searched whole.
func draw(rng *rand.Rand) Config {
	c := Config{Rules: AllRules(), Rising: true}
	for range 1 + rng.IntN(writesMax) {
		c.Writes = append(c.Writes, Op{At: anywhere})
	}
	for range 2 + rng.IntN(strongMax-1) {
		op := Op{Kind: Get, At: anywhere}
		switch rng.IntN(6) {
		case 0, 1:
			op.Kind = Put
		case 2:
			op.Kind, op.Expects = CompareAndSet, anything
		case 3:
			op.Kind = Delete
		}
		c.Strong = append(c.Strong, op)
	}
	for i := range c.Clocks {
		c.Clocks[i] = uint8(rng.IntN(8))
	}
	c.Elections, c.Crashes, c.Repairs = uint8(rng.IntN(3)), uint8(rng.IntN(2)), uint8(rng.IntN(3))
	c.Victim = uint8(rng.IntN(replicas))
	c.Hints, c.FollowerReads = rng.IntN(2) == 0, rng.IntN(2) == 0
	return c
}

// stepsMax bounds one walk; nearly all end by themselves.
const stepsMax = 300

// TestNothingBreaksThePromiseInRandomWalks takes 1,000 walks, or as many as CAPROCK_MODEL_WALKS says, each with a mix and
// faults of its own, drawn from its number.
func TestNothingBreaksThePromiseInRandomWalks(t *testing.T) {
	walks := uint64(1000)
	if s := os.Getenv("CAPROCK_MODEL_WALKS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		walks = n
	}
	steps, returned := 0, 0
	for n := range walks {
		rng := rand.New(rand.NewPCG(n, 6))
		c := draw(rng)
		out := Walk(&c, rng, stepsMax)
		steps += out.States
		returned += out.Returned
		require.Empty(t, out.Wrong, "walk %d\n%s", n, c.Describe(&out))
	}
	require.Greater(t, returned, int(walks/4), "most histories are never finished, so that little was checked")
	t.Logf("%d walks, %d steps, %d histories finished", walks, steps, returned)
}

// TestWalksFindWhatTheDesignMissed proves that the walks are long and varied enough to find the faults that small mixes without
// repairs and with one election had not shown.
func TestWalksFindWhatTheDesignMissed(t *testing.T) {
	if os.Getenv("CAPROCK_MODEL_WALKS") == "" {
		t.Skip("takes minutes: set CAPROCK_MODEL_WALKS")
	}
	for _, s := range found() {
		t.Run(s.name, func(t *testing.T) {
			for n := range uint64(400_000) {
				rng := rand.New(rand.NewPCG(n, 6))
				c := draw(rng)
				s.off(&c.Rules)
				if out := Walk(&c, rng, stepsMax); out.Wrong != "" {
					t.Logf("walk %d: %s", n, out.Wrong)
					return
				}
			}
			t.Fatal("nothing found")
		})
	}
}
