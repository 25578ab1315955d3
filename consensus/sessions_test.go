package consensus

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// pass lets time go by, which the leader's wall clock shows too.
func (tm *testMachine) pass(d time.Duration) { tm.now, tm.uptime = tm.now+d, tm.uptime+d }

// lead makes another process the leader, which has run for so long and whose wall clock is off by skew.
func (tm *testMachine) lead(uptime, skew time.Duration) {
	tm.term, tm.uptime, tm.now = tm.term+1, uptime, tm.now+skew
}

// sessionRows counts the sessions' rows, and closes the machine.
func (tm *testMachine) sessionRows() (n int) {
	for key := range tm.rows() {
		if bytes.HasPrefix([]byte(key), []byte{1, 0, 0, 0, 1, 0x11, dedupSession}) {
			n++
		}
	}
	return n
}

func TestOperationsAreKnownForFifteenMinutesAndThenGone(t *testing.T) {
	for _, into := range []time.Duration{0, time.Minute, 5*time.Minute - time.Millisecond} {
		tm := newTestMachine(t)
		tm.write(put("first", "v", opID("first", 0, 0)))
		tm.pass(into)
		tm.write(put("a", "v", opID("a", 0, 0)))
		tm.pass(15 * time.Minute)
		tm.write(put("b", "v", opID("b", 0, 0)))
		require.True(t, tm.write(put("a", "v", opID("a", 0, 0))).Repeated, "after %s", into)
		tm.pass(25 * time.Minute)
		tm.write(put("c", "v", opID("c", 0, 0)))
		require.False(t, tm.write(put("b", "v", opID("b", 0, 0))).Repeated)
		require.Equal(t, 2, tm.sessionRows(), "b, written again, and c")
	}
}

func TestLeaderWithAWrongClockForgetsNothing(t *testing.T) {
	for _, skew := range []time.Duration{21 * time.Minute, 24 * time.Hour, -24 * time.Hour} {
		tm := newTestMachine(t)
		tm.write(put("k", "a", opID("client", 7, 7))) // applied; the answer is lost
		tm.lead(time.Hour, skew)
		tm.write(put("x", "x", opID("other", 0, 0)))
		tm.now += skew // a leader's clock may also be set while it leads, as often as it likes
		tm.write(put("x", "x", opID("other", 1, 0)))
		tm.lead(time.Minute, -2*skew)
		tm.pass(time.Second)
		tm.write(put("k", "b", opID("third", 1, 1)))
		require.True(t, tm.write(put("k", "a", opID("client", 7, 7))).Repeated, "off by %s", skew)
		tm.close()
	}
}

// Once the clock is right again, and the others' far behind what it showed, time goes on.
func TestLeaderWithAWrongClockDoesNotStopTheForgetting(t *testing.T) {
	tm := newTestMachine(t)
	tm.lead(time.Hour, 24*time.Hour)
	tm.write(put("k", "a", opID("a", 0, 0)))
	tm.lead(2*time.Hour, -24*time.Hour)
	for i := range 21 {
		tm.write(put("k", "b", opID(fmt.Sprintf("b%d", i), 0, 0)))
		tm.pass(time.Minute)
	}
	require.Less(t, tm.sessionRows(), 21)
}

// Entries that come one shortly after another add up to the time that has passed, and the clock's row is not written with
// each of them.
func TestShortStepsAddUp(t *testing.T) {
	var c groupClock
	written := 0
	const step, steps = 7 * time.Millisecond, 200_000
	for i := range uint64(steps) {
		next, moved := c.after(Committed{Pos: causal.Position{Term: 1, Index: i + 1}, Uptime: time.Duration(i) * step})
		if moved {
			written++
		} else {
			require.Equal(t, c, next)
		}
		c = next
	}
	told := time.Duration(c.era)*eraLength + c.spent
	require.InDelta(t, steps*step, told, float64(clockTick+step))
	require.LessOrEqual(t, written, int(steps*step/clockTick)+1)
}

// Where no time can be told, what is kept is bounded all the same.
func TestSessionsAreBoundedWhenTimeStandsStill(t *testing.T) {
	c, _ := groupClock{}.after(Committed{Pos: causal.Position{Term: 1, Index: 10}})
	began := c.began
	for i := range uint64(3) {
		c, _ = c.after(Committed{Pos: causal.Position{Term: 2, Index: began + (i+1)*eraEntriesMax - 1}})
		require.Equal(t, i, c.era)
		c, _ = c.after(Committed{Pos: causal.Position{Term: 2, Index: began + (i+1)*eraEntriesMax}})
		require.Equal(t, i+1, c.era)
	}
}

// Against what really passes: the clock is never ahead, and behind only by what passes between terms.
func TestGroupClockIsNeverFast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c groupClock
		var actual, between, uptime time.Duration
		term := uint64(1)
		for i := range uint64(rapid.IntRange(1, 60).Draw(t, "entries")) {
			passed := time.Duration(rapid.Int64Range(0, int64(4*time.Minute)).Draw(t, "passed"))
			actual, uptime = actual+passed, uptime+passed
			if i == 0 || rapid.IntRange(0, 3).Draw(t, "election") == 0 {
				term++
				uptime = time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "uptime"))
				// What had not made a tick before it goes too.
				between += passed + clockTick
			}
			c, _ = c.after(Committed{Pos: causal.Position{Term: term, Index: i + 1}, Uptime: uptime})
			told := time.Duration(c.era)*eraLength + c.spent
			require.LessOrEqual(t, told, actual)
			require.GreaterOrEqual(t, told, actual-between-clockTick)
			row := c.encode()
			again, found, err := readGroupClock(oneRow(row), 1)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, c, again)
			_, _, err = readGroupClock(oneRow(row[:len(row)-1]), 1)
			require.ErrorIs(t, err, ErrUnreadable)
		}
	})
}

type oneRow []byte

func (r oneRow) Dedup(kv.GroupID, []byte) ([]byte, bool, error) { return r, true, nil }

// interrupted are rows between whose reads something else happens.
type interrupted struct {
	dedupRows
	reads  int
	before int // the read before which it happens
	what   func()
}

func (r *interrupted) Dedup(g kv.GroupID, id []byte) ([]byte, bool, error) {
	if r.reads == r.before {
		r.what()
	}
	r.reads++
	return r.dedupRows.Dedup(g, id)
}

func TestInquiryFindsAnOperationWhoseSessionMovesMeanwhile(t *testing.T) {
	for old := range erasKept {
		for _, later := range []int{0, 1, 10} {
			for before := range erasKept + 3 {
				tm := newTestMachine(t)
				tm.write(put("k", "v", opID("s", 1, 0)))
				tm.pass(time.Duration(old) * eraLength)
				tm.write(put("other", "v", opID("other", 0, 0))) // another session brings the present era
				rows := &interrupted{dedupRows: tm.engine.State(), before: before}
				rows.what = func() {
					tm.write(put("k", "w", opID("s", 2, 0)))
					for i := range later {
						tm.pass(eraLength)
						tm.write(put("k", "x", opID("s", uint64(i)+3, 0)))
					}
				}
				_, found, err := recall(rows, machineGroup, opID("s", 1, 0))
				require.NoError(t, err)
				require.True(t, found, "%d eras old, and on by %d eras before read %d", old, later, before)
				tm.close()
			}
		}
	}
}
