package api

import (
	"bytes"
	"context"
	"strconv"

	"github.com/caprockdb/caprock/pkg/kv"
)

// How far a policy's keys are from the lanes that it names.

// stateOf returns what a policy's answer says of its keys: nothing of them is being switched, or what is, in which mode.
func stateOf(switches []kv.LaneSwitch) string {
	state := "active"
	for i := range switches {
		if state == "active" || switches[i].Mode == "draining" {
			state = switches[i].Mode
		}
	}
	return state
}

// switchesOf asks how far the switches of a policy's keys have come.
func (x *exchange) switchesOf(ctx context.Context, prefix []byte) []kv.LaneSwitch {
	return x.h.deps.Backend.Policies().Switches(ctx, prefix)
}

// appendPolicyState appends the last members of a policy's document, and its end.
func appendPolicyState(dst []byte, switches []kv.LaneSwitch) []byte {
	dst = append(dst, `,"state":`...)
	dst = appendText(dst, stateOf(switches))
	if len(switches) > 0 {
		dst = appendSwitches(dst, switches)
	}
	return append(dst, '}')
}

// appendSwitches appends the member "switches", preceded by a comma.
func appendSwitches(dst []byte, switches []kv.LaneSwitch) []byte {
	dst = append(dst, `,"switches":[`...)
	for i := range switches {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendSwitch(dst, &switches[i])
	}
	return append(dst, ']')
}

func appendSwitch(dst []byte, s *kv.LaneSwitch) []byte {
	dst = appendBytes(append(dst, '{'), "prefix", "prefix_encoding", s.Prefix)
	dst = append(dst, `,"state":`...)
	dst = appendText(dst, s.Mode)
	dst = append(dst, `,"phase":`...)
	dst = appendText(dst, s.Phase)
	dst = append(dst, `,"epoch":`...)
	dst = strconv.AppendUint(dst, s.Epoch, 10)
	dst = append(dst, `,"waiting_for":[`...)
	for i, name := range s.WaitingFor {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendText(dst, name)
	}
	dst = append(dst, ']')
	for _, count := range []struct {
		member string
		value  int
	}{
		{`,"partitions":`, s.Partitions},
		{`,"partitions_swept":`, s.Swept},
		{`,"passes":`, s.Passes},
		{`,"hints":`, s.Hints},
		{`,"settled_keys":`, s.Settled},
		{`,"conflicts":`, s.Conflicts},
	} {
		dst = strconv.AppendInt(append(dst, count.member...), int64(count.value), 10)
	}
	if s.Conflicts > 0 {
		dst = appendBytes(append(dst, ','), "conflict_key", "conflict_key_encoding", s.ConflictKey)
	}
	if s.Problem != "" {
		dst = append(dst, `,"problem":`...)
		dst = appendSafeText(dst, s.Problem)
	}
	return append(dst, '}')
}

// orphans returns the switches that no policy's answer shows: those of prefixes whose policy is gone.
func orphans(all []kv.LaneSwitch, shown [][]kv.LaneSwitch) []kv.LaneSwitch {
	var out []kv.LaneSwitch
	for i := range all {
		found := false
		for _, of := range shown {
			for j := range of {
				found = found || of[j].Epoch == all[i].Epoch && bytes.Equal(of[j].Prefix, all[i].Prefix)
			}
		}
		if !found {
			out = append(out, all[i])
		}
	}
	return out
}
