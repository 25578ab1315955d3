package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// simSession is a client that carries a session's token from node to node, and what it must not miss.
type simSession struct {
	token []byte
	wrote int            // counts its writes
	seen  map[string]int // by key, the number of the latest write that it made or read
	// last is the number of what it read or wrote last of a key, gone those of unknown that it has read.
	last map[string]int
	gone map[string]bool
	// unknown are writes, of both sessions, of which nobody knows the outcome. Such a write may take effect late, above others that
	// were made after it: the contract says so, and a clock that was ten minutes ahead makes it happen.
	unknown map[string]bool
}

func newSimSessions() [2]*simSession {
	unknown := map[string]bool{}
	var out [2]*simSession
	for i := range out {
		out[i] = &simSession{
			token: []byte(kv.SessionNew), seen: map[string]int{}, last: map[string]int{}, gone: map[string]bool{}, unknown: unknown,
		}
	}
	return out
}

// check checks what the session has read of a key.
func (s *simSession) check(t *testing.T, key string, got int) {
	t.Helper()
	write := fmt.Sprint(key, "=", got)
	late := s.unknown[write] && !s.gone[write]
	again := got == s.last[key]
	require.True(t, got > s.seen[key] || again || late, "%s: the session has seen %d, read %d last, and reads %d", key, s.seen[key], s.last[key], got)
	s.gone[write] = s.unknown[write]
	s.last[key], s.seen[key] = got, max(s.seen[key], got)
}

// step makes a random operation of the session at a random node, and checks what it read. Each key has one writer, whose values
// are numbers that rise.
func (s *simSession) step(t *testing.T, ctx context.Context, c *Cluster, r *rand.Rand, own, foreign []string) (served bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req := &kv.Request{Op: kv.OpGet, Level: kv.LevelCausal, Session: s.token, Key: []byte(foreign[r.IntN(len(foreign))]), Quorum: kv.Quorum{R: 1}}
	write := r.IntN(2) == 0
	switch {
	case write:
		s.wrote++
		*req = kv.Request{
			Op: kv.OpPut, Level: kv.LevelCausal, Session: s.token, Key: []byte(own[r.IntN(len(own))]), Value: []byte(strconv.Itoa(s.wrote)),
			Quorum: kv.Quorum{W: 1 + r.IntN(2)},
		}
		if r.IntN(5) == 0 {
			req.Level, req.Quorum = kv.LevelStrong, kv.Quorum{}
		}
	case r.IntN(2) == 0:
		req.Key = []byte(own[r.IntN(len(own))])
	}
	at := r.IntN(3)
	res, err := c.Execute(ctx, at, req)
	key := string(req.Key)
	if err != nil {
		require.NotEqual(t, kv.CodeBadRequest, kv.CodeOf(err), "node n%d refuses the token for good: %v", at+1, err)
		if write && kv.AsError(err).Outcome != kv.OutcomeNotApplied {
			s.unknown[fmt.Sprint(key, "=", s.wrote)] = true
		}
		return false
	}
	require.NotEmpty(t, res.Session)
	require.LessOrEqual(t, len(res.Session), kv.SessionBytesMax)
	s.token = res.Session
	if write {
		s.seen[key], s.last[key] = s.wrote, s.wrote
		return true
	}
	got := 0
	if res.Found {
		got, err = strconv.Atoi(string(res.Value))
		require.NoError(t, err)
	}
	s.check(t, key, got)
	return true
}

// Two sessions wander over the nodes, write keys of their own and read each other's, in both lanes and with R = 1, while nodes are
// cut off, killed and have wrong clocks. There are more keys than a token knows by themselves.
func TestSessionsReadWhatTheyWroteAndSaw(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		r := rand.New(rand.NewPCG(c.opts.Seed, 7))
		var keys [2][]string
		for i := range 40 {
			keys[i%2] = append(keys[i%2], fmt.Sprint("k", i))
		}
		sessions := newSimSessions()
		served := 0
		for round := range 12 {
			away := r.IntN(3)
			switch round % 3 {
			case 0:
				c.Cut([]int{away}, others(away))
			case 1:
				require.NoError(t, c.Crash(100, away))
			case 2:
				c.SetSkew(away, []time.Duration{-10 * time.Minute, 10 * time.Minute}[r.IntN(2)])
			}
			for range 60 {
				i := r.IntN(2)
				if sessions[i].step(t, ctx, c, r, keys[i], keys[1-i]) {
					served++
				}
			}
			c.Heal()
			c.SetSkew(away, 0)
			require.NoError(t, c.startMissing(ctx))
			waitReady(t, ctx, c, 40*time.Second)
		}
		require.Greater(t, served, 200, "hardly anything was served: the run proves nothing")
	})
}

// The replica that a session wrote to is cut off. Others do not have the write; they say so within the patience, and how far they
// are behind.
func TestSessionAheadOfAllReplicasIsToldTheLag(t *testing.T) {
	runSeeds(t, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
		lone := int(c.opts.Seed) % 3
		until(t, 10*time.Second, "a put before the cut", func() bool {
			_, err := put(ctx, c, lone, kv.LevelStrong, "k", "old")
			return err == nil
		})
		time.Sleep(time.Second)
		c.Cut([]int{lone}, others(lone))
		res, err, _ := timed(ctx, c, lone, &kv.Request{
			Op: kv.OpPut, Level: kv.LevelCausal, Key: []byte("k"), Value: []byte("new"), Session: []byte(kv.SessionNew), Quorum: kv.Quorum{W: 1},
		})
		require.Nil(t, err)
		require.Equal(t, kv.LevelCausal, res.Level)
		read := &kv.Request{Op: kv.OpGet, Level: kv.LevelCausal, Key: []byte("k"), Session: res.Session, Quorum: kv.Quorum{R: 1}}
		got, err, _ := timed(ctx, c, lone, read)
		require.Nil(t, err)
		require.Equal(t, "new", string(got.Value))
		_, err, took := timed(ctx, c, others(lone)[0], read)
		require.NotNil(t, err, "a replica without the session's write answered")
		require.Equal(t, kv.CodeQuorumUnavailable, err.Code)
		require.Positive(t, err.Lag)
		require.Less(t, took, 2*time.Second)
		c.Heal()
		until(t, 20*time.Second, "the write to arrive", func() bool {
			res, err, _ := timed(ctx, c, others(lone)[0], read)
			return err == nil && slices.Equal(res.Value, []byte("new"))
		})
	})
}
