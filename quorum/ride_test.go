package quorum

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// rider is a write of the coordinator that was placed first and last at the times.
func rider(c *Coordinator, first, last causal.HLC, edit func(*kv.Request)) *writeOp {
	o := &writeOp{c: c, call: &Call{Request: &kv.Request{Key: []byte("k"), Level: kv.LevelEventual}, Resolver: LWW{}}}
	if edit != nil {
		edit(o.call.Request)
	}
	for _, at := range [...]causal.HLC{first, last} {
		c.rides.mount(o, placed{dot: causal.Dot{Node: 1, Time: at}})
	}
	return o
}

func TestWriteRidesOnlyOnWhatLiesAboveItWholly(t *testing.T) {
	for _, c := range []struct {
		name    string
		top     func(*kv.Request)
		first   causal.HLC
		carried bool
	}{
		{"all attempts later", nil, 11, true},
		{"an attempt from before, which the strong lane may take in", nil, 5, false},
		{"attempts of another coordinator before", func(r *kv.Request) { r.Resume = []byte{1} }, 11, false},
		{"hints count for the later one alone", func(r *kv.Request) { r.Sloppy = true }, 11, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := &Coordinator{}
			all.rides.latest = map[entryKey]*writeOp{}
			o := rider(all, 8, 10, nil)
			top := rider(all, c.first, 20, c.top)
			top.applied = true
			close(top.ended)
			_, carried := o.ride(t.Context())
			require.Equal(t, c.carried, carried)
		})
	}
}
