package transport

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// faulty returns two muxes of which the first has the rules.
func faulty(t *testing.T, rules ...Rule) (one, two *station, f *Faults, stop func()) {
	t.Helper()
	f = NewFaults(1)
	_, one, two, stop = pair(t, withFaults(f))
	// Both directions are connected and work before the rules are there.
	require.NoError(t, (<-one.write(t, 2, "before", time.Second)).err)
	require.NoError(t, (<-two.write(t, 1, "before", time.Second)).err)
	require.NoError(t, f.Set(rules))
	return one, two, f, stop
}

func TestCutTakesEffectPerDirectionAndClass(t *testing.T) {
	for _, test := range []struct {
		name                  string
		rule                  Rule
		raftOut, raftIn       bool // arrive
		requestOut, requestIn bool // get an answer
		handledOut            bool // the peer handled a request whose answer may be lost
	}{
		{"everything", Rule{Cut: true}, false, false, false, false, false},
		{"raft only", Rule{Cut: true, Class: ClassRaft}, false, false, true, true, true},
		{"data only", Rule{Cut: true, Class: ClassData}, true, true, false, false, false},
		{"out", Rule{Cut: true, Direction: DirectionOut}, false, true, false, false, false},
		{"in", Rule{Cut: true, Direction: DirectionIn}, true, false, false, false, true},
		{"this peer", Rule{Cut: true, Peer: 2}, false, false, false, false, false},
		{"another peer", Rule{Cut: true, Peer: 3}, true, true, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, two, f, stop := faulty(t, test.rule)
				defer stop()
				require.True(t, one.Send(2, []byte("out")), "the sender cannot tell")
				require.True(t, two.Send(1, []byte("in")))
				out, in := one.write(t, 2, "out", time.Second), two.write(t, 1, "in", time.Second)
				time.Sleep(2 * time.Second)
				require.Equal(t, test.raftOut, len(two.node.rafts()) > 0)
				require.Equal(t, test.raftIn, len(one.node.rafts()) > 0)
				for c, want := range map[<-chan outcome]bool{out: test.requestOut, in: test.requestIn} {
					if o := <-c; want {
						require.NoError(t, o.err)
					} else {
						requireUnknown(t, o.err, kv.CodeDeadlineExceeded)
					}
				}
				require.Equal(t, test.handledOut, two.node.written() == 2)
				require.True(t, one.Connected(2), "the link stays up")

				f.Clear()
				require.Empty(t, f.Rules())
				require.NoError(t, (<-one.write(t, 2, "after", time.Second)).err)
				require.NoError(t, (<-two.write(t, 1, "after", time.Second)).err)
			})
		})
	}
}

func TestDropHitsItsShare(t *testing.T) {
	for _, d := range []Direction{DirectionOut, DirectionIn} {
		synctest.Test(t, func(t *testing.T) {
			one, two, _, stop := faulty(t, Rule{Drop: 0.3, Direction: d, Class: ClassRaft})
			defer stop()
			from, to := one, two
			if d == DirectionIn {
				from, to = two, one
			}
			for range 1000 {
				require.True(t, from.Send(to.self, []byte("f")))
			}
			synctest.Wait()
			require.InDelta(t, 700, len(to.node.rafts()), 70)
			require.InDelta(t, 300, one.metric(t, "dropped_frames_total"), 70)
		})
	}
}

func TestDelayHoldsFramesBackInOrder(t *testing.T) {
	for _, d := range []Direction{DirectionOut, DirectionIn} {
		synctest.Test(t, func(t *testing.T) {
			one, two, f, stop := faulty(t, Rule{Delay: 200 * time.Millisecond, Direction: d})
			defer stop()
			from, to := one, two
			if d == DirectionIn {
				from, to = two, one
			}
			for i := range 10 {
				from.Send(to.self, []byte{byte(i)})
			}
			c := one.write(t, 2, "k", time.Second)
			time.Sleep(199 * time.Millisecond)
			require.Empty(t, to.node.rafts())
			f.Clear() // what is held back still comes
			time.Sleep(2 * time.Millisecond)
			require.Len(t, to.node.rafts(), 10)
			for i, frame := range to.node.rafts() {
				require.Equal(t, []byte{byte(i)}, frame)
			}
			require.NoError(t, (<-c).err)
		})
	}
}

func TestDelayedRequestIsNeverReportedAsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, _, stop := faulty(t, Rule{Delay: 200 * time.Millisecond, Direction: DirectionOut})
		defer stop()
		o := <-one.write(t, 2, "k", 100*time.Millisecond)
		requireUnknown(t, o.err, kv.CodeDeadlineExceeded)
		time.Sleep(time.Second)
		require.Equal(t, 2, two.node.written(), "it came after all")
	})
}

func TestDuplicateRepeatsRaftButRequestsAreHandledOnce(t *testing.T) {
	for _, rule := range []Rule{
		{Duplicate: 1, Direction: DirectionOut},
		{Duplicate: 1, Direction: DirectionIn},
		{Duplicate: 1, Delay: 10 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			one, two, _, stop := faulty(t, rule)
			defer stop()
			one.Send(2, []byte("f"))
			two.Send(1, []byte("f"))
			c := one.write(t, 2, "k", time.Second)
			require.NoError(t, (<-c).err)
			require.NoError(t, (<-two.write(t, 1, "k", time.Second)).err)
			synctest.Wait()
			want := map[Direction][2]int{DirectionOut: {1, 2}, DirectionIn: {2, 1}, "": {4, 2}}[rule.Direction]
			if rule.Delay > 0 {
				time.Sleep(time.Second)
				want = [2]int{2, 2}
			}
			require.Len(t, one.node.rafts(), want[0])
			require.Len(t, two.node.rafts(), want[1])
			require.Equal(t, 2, two.node.written())
			require.Equal(t, 2, one.node.written())
			_, again := outcomeOf(c)
			require.False(t, again)
		})
	}
}

func TestRepeatedRequestThatExpiresWhileQueuedIsNotReportedAsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFaults(1)
		b, one, two, stop := pair(t, withFaults(f))
		defer stop()
		jam(t, b, one)
		require.NoError(t, f.Set([]Rule{{Duplicate: 1, Class: ClassData}}))
		// Only one of its two frames could be taken back.
		requireUnknown(t, (<-one.write(t, 2, "k", 100*time.Millisecond)).err, kv.CodeDeadlineExceeded)
		b.loosen(2)
		time.Sleep(time.Second)
		require.Equal(t, 1, two.node.written())
	})
}

func TestHeldBackFramesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFaults(1)
		_, one, two, stop := pair(t, withFaults(f), tuned(func(c *Config) { c.DelayedBytesMax = 1000 }))
		defer stop()
		require.NoError(t, f.Set([]Rule{{Delay: time.Second}}))
		for range 100 {
			one.Send(2, make([]byte, 100))
		}
		time.Sleep(2 * time.Second)
		require.Len(t, two.node.rafts(), 1000/(100+2*frameBytes))
	})
}

func TestRulesAreAllOrNothing(t *testing.T) {
	f := NewFaults(1)
	require.NoError(t, f.Set([]Rule{{Cut: true}}))
	require.Error(t, f.Set([]Rule{{Drop: 0.5}, {Drop: 5}}))
	require.Equal(t, []Rule{{Cut: true}}, f.Rules())
	require.Error(t, f.Set(make([]Rule, rulesMax+1)))
	require.NoError(t, f.Set(nil))
	require.Equal(t, []Rule{}, f.Rules())
}

func TestRunEndsWhileFramesAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, _, _, stop := faulty(t, Rule{Delay: time.Minute})
		errs := make(chan error, 1)
		go func() {
			_, err := one.Meta(context.Background(), 2, nil)
			errs <- err
		}()
		synctest.Wait()
		stop()
		requireUnknown(t, <-errs, kv.CodeNotReady)
	})
}
