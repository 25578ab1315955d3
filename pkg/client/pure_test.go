package client

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestTableFindsEachCallOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table table
		model := map[uint64]*call{}
		var spent []uint64
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2, 3:
				c := &call{}
				id := table.add(c)
				require.NotZero(t, id)
				require.NotContains(t, model, id)
				require.NotContains(t, spent, id)
				model[id] = c
			case 4, 5, 6:
				for id, c := range model {
					require.Same(t, c, table.take(id))
					delete(model, id)
					spent = append(spent, id)
					break
				}
			case 7:
				if len(spent) > 0 {
					require.Nil(t, table.take(rapid.SampledFrom(spent).Draw(t, "spent")))
				}
				require.Nil(t, table.take(rapid.Uint64().Draw(t, "garbage")|1<<63))
			case 8:
				for id, c := range model {
					table.drop(func(other *call) bool { return other == c })
					delete(model, id)
					spent = append(spent, id)
					break
				}
			case 9:
				require.Len(t, table.takeAll(nil), len(model))
				for id := range model {
					spent = append(spent, id)
				}
				clear(model)
			}
			require.Equal(t, len(model), table.len())
		}
	})
}

func TestWhatFollowsAFailure(t *testing.T) {
	p := pacing{endpoints: 3, retryMin: 5 * time.Millisecond, retryMax: 100 * time.Millisecond}
	notApplied := func(code kv.Code) *kv.Error { return kv.Errorf(code, "x") }
	unknown := func(code kv.Code) *kv.Error { return kv.Errorf(code, "x").WithOutcome(kv.OutcomeUnknown) }
	slow := notApplied(kv.CodeOverloaded)
	slow.RetryAfter = time.Second
	final := notApplied(kv.CodeNotReady)
	final.Retryable = false
	for name, test := range map[string]struct {
		failure failure
		pause   time.Duration
		again   bool
	}{
		"a lost read goes on at once":                {failure{attempts: 1, lost: true, err: unknown(kv.CodeNotReady)}, 0, true},
		"a lost read visits each endpoint":           {failure{attempts: 3, lost: true, err: unknown(kv.CodeNotReady)}, 0, true},
		"a read that kills endpoints stops":          {failure{attempts: 4, lost: true, err: unknown(kv.CodeNotReady)}, 0, false},
		"a lost write never":                         {failure{attempts: 1, lost: true, write: true, err: unknown(kv.CodeNotReady)}, 0, false},
		"no leader, write":                           {failure{attempts: 1, write: true, err: notApplied(kv.CodeNoLeader)}, 5 * time.Millisecond, true},
		"no leader, write, later":                    {failure{attempts: 3, write: true, err: notApplied(kv.CodeNoLeader)}, 20 * time.Millisecond, true},
		"no leader, write, much later":               {failure{attempts: 60, write: true, err: notApplied(kv.CodeNoLeader)}, 100 * time.Millisecond, true},
		"no leader, unknown write":                   {failure{attempts: 1, write: true, err: unknown(kv.CodeNoLeader)}, 0, false},
		"overloaded names its pause":                 {failure{attempts: 1, write: true, err: slow}, time.Second, true},
		"a lost strong write goes on at once":        {failure{attempts: 1, lost: true, write: true, named: true, err: unknown(kv.CodeNotReady)}, 0, true},
		"a strong write that kills endpoints waits":  {failure{attempts: 4, lost: true, write: true, named: true, err: unknown(kv.CodeNotReady)}, 40 * time.Millisecond, true},
		"no leader, unknown strong write":            {failure{attempts: 1, write: true, named: true, err: unknown(kv.CodeNoLeader)}, 5 * time.Millisecond, true},
		"an unreachable leader, unknown":             {failure{attempts: 1, write: true, named: true, err: unknown(kv.CodeQuorumUnavailable)}, 5 * time.Millisecond, true},
		"an unreachable leader, unknown before":      {failure{attempts: 2, write: true, named: true, unsure: true, err: notApplied(kv.CodeQuorumUnavailable)}, 10 * time.Millisecond, true},
		"an unreachable leader, certain":             {failure{attempts: 1, write: true, named: true, err: notApplied(kv.CodeQuorumUnavailable)}, 0, true},
		"a bug, unknown":                             {failure{attempts: 1, write: true, named: true, err: unknown(kv.CodeInternal)}, 0, false},
		"not retryable":                              {failure{attempts: 1, err: final}, 5 * time.Millisecond, false},
		"a read without quorum looks elsewhere":      {failure{attempts: 2, err: notApplied(kv.CodeQuorumUnavailable)}, 0, true},
		"a read without quorum anywhere":             {failure{attempts: 3, err: notApplied(kv.CodeQuorumUnavailable)}, 0, false},
		"a write without quorum looks elsewhere":     {failure{attempts: 1, write: true, err: notApplied(kv.CodeQuorumUnavailable)}, 0, true},
		"a write without quorum anywhere":            {failure{attempts: 3, write: true, err: notApplied(kv.CodeQuorumUnavailable)}, 0, false},
		"a missed condition":                         {failure{attempts: 1, write: true, err: notApplied(kv.CodeVersionMismatch)}, 0, false},
		"the server's deadline":                      {failure{attempts: 1, err: notApplied(kv.CodeDeadlineExceeded)}, 0, false},
		"no operation is sent for ever":              {failure{attempts: attemptsMax, err: notApplied(kv.CodeNoLeader)}, 0, false},
		"an unknown write is never sent twice, ever": {failure{attempts: 1, write: true, err: unknown(kv.CodeOverloaded)}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			pause, again := p.next(test.failure)
			require.Equal(t, test.again, again)
			if again {
				require.Equal(t, test.pause, pause)
			}
		})
	}
}
