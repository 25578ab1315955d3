package model

import (
	"hash/maphash"
	"math/rand/v2"
)

// Outcome is what a search came to.
type Outcome struct {
	// States is how many different states were visited; of a walk, how many steps it took.
	States int
	// Exhausted is true when every state that can be reached was visited.
	Exhausted bool
	// Wrong says what of the promise the last state of Trace breaks; "" if nothing was found.
	Wrong string
	// Trace are the steps to it, the fewest there are.
	Trace []Step
	// Returned counts, over all visited states, those in which every operation had returned: a search in which nothing
	// ever finishes proves nothing.
	Returned int
}

// fingerprint stands for a state among those visited: 128 bits, so that two of a billion states share one with a
// probability below 1 in 10^20.
type fingerprint [2]uint64

type fingerprints struct{ a, b maphash.Seed }

func (f fingerprints) of(s *State) fingerprint {
	return fingerprint{maphash.Comparable(f.a, *s), maphash.Comparable(f.b, *s)}
}

// origin is how a visited state was first reached.
type origin struct {
	from uint32
	step Step
}

// Search visits the states that can be reached, nearest first, until the promise is broken, all are visited or statesMax
// are.
func Search(c *Config, statesMax int) Outcome {
	seeds := fingerprints{maphash.MakeSeed(), maphash.MakeSeed()}
	root := c.initial()
	visited := map[fingerprint]struct{}{seeds.of(&root): {}}
	origins := []origin{{}}
	// Only the states of the current distance and the next are kept whole.
	near, nearFrom := []State{root}, []uint32{0}
	var out Outcome
	for len(near) > 0 {
		var far []State
		var farFrom []uint32
		for i := range near {
			c.Next(&near[i], func(step Step, s *State) {
				if out.Wrong != "" {
					return
				}
				mark := seeds.of(s)
				if _, ok := visited[mark]; ok {
					return
				}
				visited[mark] = struct{}{}
				origins = append(origins, origin{from: nearFrom[i], step: step})
				last := uint32(len(origins) - 1)
				if c.finished(s) {
					out.Returned++
				}
				if out.Wrong = c.wrong(&near[i], s); out.Wrong != "" {
					out.Trace = trace(origins, last)
					return
				}
				far, farFrom = append(far, *s), append(farFrom, last)
			})
			if out.States = len(visited); out.Wrong != "" || out.States >= statesMax {
				return out
			}
		}
		near, nearFrom = far, farFrom
	}
	out.Exhausted = true
	return out
}

func trace(origins []origin, last uint32) []Step {
	var back []Step
	for ; last != 0; last = origins[last].from {
		back = append(back, origins[last].step)
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}

// finished says whether every operation has returned that can: an eventual write all of whose messages are lost cannot.
func (c *Config) finished(s *State) bool {
	all := uint8(1<<len(c.Strong)-1) << writesMax
	for w, op := range c.Writes {
		if op.Lost|1<<op.At != 1<<replicas-1 {
			all |= 1 << w
		}
	}
	return s.returned&all == all
}

// Walk takes random steps until the promise is broken, nothing more can happen, or stepsMax are taken.
func Walk(c *Config, rng *rand.Rand, stepsMax int) Outcome {
	s := c.initial()
	var out Outcome
	for range stepsMax {
		var steps []Step
		var states []State
		c.Next(&s, func(step Step, next *State) {
			steps, states = append(steps, step), append(states, *next)
		})
		if len(steps) == 0 {
			break
		}
		k := rng.IntN(len(steps))
		out.Trace = append(out.Trace, steps[k])
		out.States++
		if out.Wrong = c.wrong(&s, &states[k]); out.Wrong != "" {
			return out
		}
		if s = states[k]; c.finished(&s) {
			break
		}
	}
	if c.finished(&s) {
		out.Returned = 1
	}
	return out
}
