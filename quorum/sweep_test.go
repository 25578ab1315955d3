package quorum

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
)

// A coordinator that had not heard of a strong write has counted on with what that write took in. The sweep must count neither twice, nor
// let a coordinator that has not heard of the sweep's entry do so.
func TestSweptCounterIsWhatReadersSawAndStaysExact(t *testing.T) {
	v := &versions{}
	first := keep(t, v, blind("5"), 1, 10, Counter{})
	var found Findings
	found.Add(&ReadReply{Set: v.set})
	strong := stateOf(7, 15, "7", first)
	strong.Base = found.Base(ReadReply{}, Counter{})
	keep(t, v, blind("1"), 2, 20, Counter{})
	v.hasStrong, v.strong = true, strong
	require.Equal(t, []string{"8"}, shown(t, v, Counter{}))

	var all Findings
	all.Add(&ReadReply{Set: v.set})
	state := ReadReply{HasStrong: true, Strong: strong}
	what := all.Settle(state, Counter{}, causal.MakeHLC(1000, 0))
	require.Equal(t, "8", string(what.Winner.Value), "what an earlier strong write took in is counted twice")

	require.True(t, what.Anew, "the state would pass for the tally of one of the versions")

	keep(t, v, blind("2"), 3, 30, Counter{}) // on top of all that, unheard
	v.strong = stateOf(9, 25, "8", append([]causal.Dot{first}, what.Takes...)...)
	v.strong.Base = what.Base
	require.Equal(t, []string{"10"}, shown(t, v, Counter{}), "what the sweep took in is counted twice")
}
