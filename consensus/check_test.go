package consensus

import (
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// judged reports the sums, in the order of the nodes from 1 on and 0 for a silent one, to a check among the voters.
func judged(conf *pb.ConfState, over bool, sums ...uint64) (*stateCheck, []kv.NodeID) {
	c := newStateCheck(causal.Position{Term: 1, Index: 7})
	for i, sum := range sums {
		if sum != 0 {
			c.sums[kv.NodeID(i+1)] = sum
		}
	}
	return c, c.judge(conf, over)
}

func TestMinorityIsAccusedAndNobodyWithoutAMajority(t *testing.T) {
	voters := func(n uint64) *pb.ConfState {
		conf := &pb.ConfState{}
		for id := uint64(1); id <= n; id++ {
			conf.Voters = append(conf.Voters, id)
		}
		return conf
	}
	joint := voters(3)
	joint.VotersOutgoing = []uint64{3, 4, 5}
	learner := voters(3)
	learner.Learners = []uint64{4}
	for _, c := range []struct {
		name    string
		conf    *pb.ConfState
		over    bool
		sums    []uint64
		accused []kv.NodeID
		done    bool
		split   bool
	}{
		{"all equal", voters(3), false, []uint64{8, 8, 8}, nil, true, false},
		{"one of three", voters(3), false, []uint64{8, 9, 8}, []kv.NodeID{2}, true, false},
		{"one of three while one is silent", voters(3), false, []uint64{8, 9, 0}, nil, false, false},
		{"one of three and one is silent for good", voters(3), true, []uint64{8, 9, 0}, nil, true, true},
		{"all three", voters(3), false, []uint64{7, 8, 9}, nil, true, true},
		{"one of two", voters(2), false, []uint64{8, 9}, nil, true, true},
		{"two of four", voters(4), false, []uint64{8, 8, 9, 9}, nil, true, true},
		{"two of five, one of them the first", voters(5), false, []uint64{9, 8, 8, 7, 8}, []kv.NodeID{1, 4}, true, false},
		{"two of five before the fifth", voters(5), false, []uint64{9, 8, 8, 8, 0}, []kv.NodeID{1}, false, false},
		{"nobody has said anything", voters(3), true, nil, nil, true, false},
		{"half of a joint configuration", joint, false, []uint64{8, 8, 8, 9, 9}, nil, true, true},
		{"both halves of a joint configuration", joint, false, []uint64{8, 9, 8, 8, 9}, []kv.NodeID{2, 5}, true, false},
		{"a learner", learner, false, []uint64{8, 8, 8, 9}, []kv.NodeID{4}, true, false},
		{"learners are no voters", learner, true, []uint64{8, 0, 9, 8}, nil, true, true},
		{"a single one", voters(1), false, []uint64{8}, nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			check, accused := judged(c.conf, c.over, c.sums...)
			require.Equal(t, c.accused, accused)
			require.Equal(t, c.done, check.done)
			require.Equal(t, c.split, check.split)
			require.Empty(t, check.judge(c.conf, c.over), "nobody is accused twice")
		})
	}
}

func TestMinorityNeverHoldsAMajority(t *testing.T) {
	// Whoever is accused, as many as a majority remain: quarantine cannot take the group's state away.
	sums := []uint64{0, 1, 2, 3}
	for n := uint64(1); n <= 5; n++ {
		conf := &pb.ConfState{}
		for id := uint64(1); id <= n; id++ {
			conf.Voters = append(conf.Voters, id)
		}
		all := 1
		for range n {
			all *= len(sums)
		}
		for code := range all {
			given := make([]uint64, n)
			for i, rest := 0, code; i < int(n); i++ {
				given[i], rest = sums[rest%len(sums)], rest/len(sums)
			}
			_, accused := judged(conf, true, given...)
			require.LessOrEqual(t, len(accused), int(n)-kv.Majority(int(n)), "%v", given)
		}
	}
}

func TestChecksSurviveTheWire(t *testing.T) {
	in := checkRequest{verb: checkReport, group: 7, pos: causal.Position{Term: 3, Index: 1 << 40}, sum: 0xfedcba9876543210}
	out, err := decodeCheckRequest(in.append(nil))
	require.NoError(t, err)
	require.Equal(t, in, out)
	reply := checkReply{verdict: verdictDone, result: CheckResult{
		Index: 9, Done: true, Agree: []kv.NodeID{1, 3}, Differ: []kv.NodeID{2}, Silent: []kv.NodeID{1 << 60},
	}}
	back, err := decodeCheckReply(reply.append(nil))
	require.NoError(t, err)
	require.Equal(t, reply, back)

	raw, answer := in.append(nil), reply.append(nil)
	for n := range raw {
		_, err := decodeCheckRequest(raw[:n])
		require.ErrorIs(t, err, ErrBadFrame)
	}
	for n := range answer {
		_, err := decodeCheckReply(answer[:n])
		require.ErrorIs(t, err, ErrBadFrame)
	}
	_, err = decodeCheckRequest(append(raw, 0))
	require.ErrorIs(t, err, ErrBadFrame)
	raw[0]++
	_, err = decodeCheckRequest(raw)
	require.ErrorIs(t, err, ErrBadFrame, "another way of hashing is not understood")
	require.NotEqual(t, pullFormat, checkFormat, "a pull is told from a check by its first byte")
}
