package consensus

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

func TestCoveredIDsAreForgottenBelowTheWatermarkOnly(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	var ids []causal.Dot
	for i := range 1000 {
		ids = append(ids, writeID(1, int64(1000+i)))
	}
	judged := func(x Expectation) {
		op := put("k", "v", kv.OpID{})
		if s, found, err := tm.engine.State().Strong(machineGroup, op.Key); err == nil && found {
			x.Revision = s.Revision
		}
		op.Guard = judgedBy(x)
		require.True(t, tm.write(op).Applied)
	}
	judged(Expectation{Covers: ids})
	tm.now += 1000 * 60 * 60 * 1e9
	judged(Expectation{})
	require.Equal(t, ids, tm.state("k").Covered, "an id was forgotten by its age")

	judged(Expectation{Before: ids[899].Time, Covers: []causal.Dot{writeID(2, 1500), writeID(2, 9999)}})
	s := tm.state("k")
	require.Equal(t, append(append([]causal.Dot(nil), ids[900:]...), writeID(2, 9999)), s.Covered)
	require.Equal(t, ids[899].Time, s.Before)

	// What is known to be everywhere stays so, also with a proposer that knows of less, and with one that knows nothing.
	judged(Expectation{Before: ids[5].Time})
	require.Equal(t, ids[899].Time, tm.state("k").Before)
	require.True(t, tm.write(put("k", "blind", kv.OpID{})).Applied)
	require.Equal(t, s.Covered, tm.state("k").Covered)
	require.Equal(t, ids[899].Time, tm.state("k").Before)

	last := settleOf("k", "winner", writeID(3, 1600), causal.Position{Term: 9, Index: 1}, tm.state("k").Revision)
	last.Guard.Writes[0].Before = writeID(3, 20_000).Time
	require.True(t, tm.write(last).Applied)
	require.Empty(t, tm.state("k").Covered, "the winner's own id is from before as well")
	require.Equal(t, writeID(3, 20_000).Time, tm.state("k").Before)
}

// A condition under a resolver that keeps versions goes by what its proposer found beside the state, and what it came to is what a
// repetition is answered, whatever stands there by then.
func TestConditionsGoByWhatStandsBesideTheStateAndRepetitionsByTheirFirstOutcome(t *testing.T) {
	tm := newTestMachine(t)
	defer tm.close()
	first := tm.write(put("k", "v", kv.OpID{}))
	session := uint64(0)
	judged := func(op WriteOp, x Expectation) WriteReply {
		if op.ID.IsZero() {
			session++
			op.ID = opID("s", session, 1)
		}
		x.Revision = 0
		if s, found, err := tm.engine.State().Strong(machineGroup, op.Key); err == nil && found {
			x.Revision = s.Revision
		}
		op.Guard = judgedBy(x)
		return tm.write(op)
	}
	at := func(version uint64) WriteOp {
		op := put("k", "new", kv.OpID{})
		op.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
		return op
	}
	require.False(t, judged(at(first.Revision), Expectation{Beside: true}).Applied, "a version beside the state has no number")
	require.False(t, judged(at(0), Expectation{Beside: true, Live: true, Replaced: true}).Applied)

	refused := at(first.Revision)
	refused.ID = opID("retry", 1, 1)
	require.False(t, judged(refused, Expectation{Beside: true, Live: true}).Applied)
	again := judged(refused, Expectation{})
	require.True(t, again.Repeated)
	require.False(t, again.Applied, "a repetition must not be applied after its first attempt was refused")

	made := at(first.Revision)
	made.ID = opID("made", 1, 1)
	reply := judged(made, Expectation{})
	require.True(t, reply.Applied)
	again = judged(made, Expectation{Beside: true, Live: true})
	require.True(t, again.Repeated && again.Applied)
	require.Equal(t, reply.Revision, again.Revision)

	deletion := WriteOp{Key: []byte("other"), Delete: true}
	require.True(t, judged(deletion, Expectation{Beside: true, Live: true}).Found, "a value stood beside the state")
	exists := put("third", "v", kv.OpID{})
	exists.Condition = kv.Condition{Kind: kv.ConditionExists}
	require.True(t, judged(exists, Expectation{Beside: true, Live: true}).Applied)
	replaced := put("third", "w", kv.OpID{})
	replaced.Condition = kv.Condition{Kind: kv.ConditionExists}
	require.False(t, judged(replaced, Expectation{Beside: true, Replaced: true}).Applied, "a deletion beside the state replaced it")
	created := put("third", "x", kv.OpID{})
	created.Condition = kv.Condition{Kind: kv.ConditionVersion}
	require.True(t, judged(created, Expectation{Beside: true, Replaced: true}).Applied)
}
