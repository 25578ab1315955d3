package quorum

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// woken takes the signal, if there is one.
func woken(wake chan struct{}) bool {
	select {
	case <-wake:
		return true
	default:
		return false
	}
}

func shuffled(rng *rand.Rand, nodes []kv.NodeID) []kv.NodeID {
	out := slices.Clone(nodes)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// A write's goroutine that has looked sleeps until it is woken. Whatever replicas report in whatever order, it must not sleep on when
// what it would see is not what it saw; an acknowledgement that decides nothing lets it sleep.
func TestWriterIsWokenByWhateverDecidesAndByNothingElse(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *cluster) {
		rng := rand.New(rand.NewPCG(1, 1))
		for range 500 {
			call := c.call(&kv.Request{Op: kv.OpPut, Key: []byte("k"), Level: kv.LevelEventual}, kv.Quorum{W: 1 + rng.IntN(5)})
			o, err := c.nodes[1].coord.newWrite(&call)
			require.NoError(t, err)
			attempt := o.begin()
			p := placed{dot: causal.Dot{Node: 1, Time: 1}}
			o.open(p, c.nodes[1].coord.callContext(t.Context()))
			saw, sawRefused := o.look(false)
			for _, node := range shuffled(rng, c.owners()) {
				what := [...]string{"ack", "ack", "ack", "healing", "refusal", "failure"}[rng.IntN(6)]
				var r WriteReply
				var failure error
				switch what {
				case "ack":
					r.Accepted = true
				case "healing":
					r.Accepted, r.Healing = true, true
				case "refusal":
					r.Highest = causal.Stamp{Time: 7}
				case "failure":
					failure = errors.New("broken")
				}
				of := attempt
				if rng.IntN(6) == 0 {
					of-- // about an attempt that is given up
				}
				o.report(of, node, r, failure)
				now, refused := o.look(false)
				if woken(o.wake) {
					saw, sawRefused = now, refused
				} else {
					require.Equal(t, saw, now, "after %s of %d it would see something else", what, node)
					require.Equal(t, sawRefused, refused)
					late, _ := o.look(true)
					require.Equal(t, now, late, "and so when the others are late")
					require.True(t, failure == nil && r.Accepted, "only an acknowledgement lets it sleep")
				}
			}
		}
	})
}

func TestAcknowledgementThatDecidesNothingWakesNobody(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, c *cluster) {
		call := c.call(&kv.Request{Op: kv.OpPut, Key: []byte("k"), Level: kv.LevelEventual}, kv.Quorum{W: 2})
		o, err := c.nodes[1].coord.newWrite(&call)
		require.NoError(t, err)
		attempt := o.begin()
		o.report(attempt, 2, WriteReply{Accepted: true}, nil)
		require.False(t, woken(o.wake))
		o.report(attempt, 3, WriteReply{Accepted: true}, nil)
		require.False(t, woken(o.wake), "this node's own copy is wanted too")
		o.report(attempt, 1, WriteReply{Accepted: true}, nil)
		require.True(t, woken(o.wake))

		get := c.call(&kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelEventual}, kv.Quorum{R: 3})
		read, _, err := c.nodes[1].coord.newRead(t.Context(), &get)
		require.NoError(t, err)
		read.plan.start(3)
		for i, node := range c.owners() {
			read.report(node, ReadReply{}, nil)
			require.Equal(t, i == 2, woken(read.wake), "answer %d", i)
		}
	})
}

// The same of a read: it has to look when an answer decides, and when a failure has it ask others.
func TestReaderIsWokenByWhateverDecidesAndByNothingElse(t *testing.T) {
	inBubble(t, 5, func(t *testing.T, c *cluster) {
		rng := rand.New(rand.NewPCG(1, 1))
		for range 500 {
			call := c.call(&kv.Request{Op: kv.OpGet, Key: []byte("k"), Level: kv.LevelEventual}, kv.Quorum{R: 2 + rng.IntN(4)})
			o, _, err := c.nodes[1].coord.newRead(t.Context(), &call)
			require.NoError(t, err)
			o.plan.start(call.Quorum.R)
			asked := o.plan.order[:call.Quorum.R]
			late := false
			saw, _ := o.look(false)
			for _, node := range shuffled(rng, asked) {
				if !late && rng.IntN(6) == 0 {
					late = true
					saw, _ = o.look(true)
				}
				var failure error
				if rng.IntN(4) == 0 {
					failure = fmt.Errorf("node %d is broken", node)
				}
				o.report(node, ReadReply{}, failure)
				slept := !woken(o.wake)
				now, more := o.look(late)
				if slept {
					require.NoError(t, failure)
					require.Equal(t, saw, now)
					require.Empty(t, more)
				}
				saw = now
			}
		}
	})
}
