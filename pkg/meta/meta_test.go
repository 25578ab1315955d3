package meta

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/ring"
)

func testGenesis(id uint64) Genesis {
	return Genesis{ClusterID: id, Partitions: 4, Replicas: 3, InitialMembers: []string{"n1", "n2", "n3"}}
}

func member(id kv.NodeID, name string, disk uint64) Member {
	return Member{ID: id, Name: name, Disk: disk, HTTP: "h", GRPC: "g", Gossip: "o"}
}

func mustApply(t *testing.T, s *State, c command) (*State, reply) {
	t.Helper()
	raw, err := json.Marshal(c)
	require.NoError(t, err)
	next, r, err := apply(s, raw)
	require.NoError(t, err)
	return next, r
}

func formed(t *testing.T) *State {
	t.Helper()
	g := testGenesis(7)
	s, r := mustApply(t, &State{Format: stateFormat}, command{Genesis: &g})
	require.Empty(t, r.Code)
	return s
}

func TestFirstGenesisWins(t *testing.T) {
	s := formed(t)
	other := testGenesis(8)
	next, r := mustApply(t, s, command{Genesis: &other})
	require.Empty(t, r.Code, "a second genesis is what a second leader proposes in good faith")
	require.Same(t, s, next)
	require.Equal(t, uint64(7), next.Genesis.ClusterID)
	require.Equal(t, []kv.NodeID{1, 2, 3}, []kv.NodeID{s.Members[0].ID, s.Members[1].ID, s.Members[2].ID})
}

func TestNodeIDBelongsToOneDiskForEver(t *testing.T) {
	first, again, wiped := member(2, "n2", 20), member(2, "n2", 20), member(2, "n2", 21)
	s, r := mustApply(t, formed(t), command{Register: &first})
	require.Empty(t, r.Code)

	again.HTTP = "elsewhere"
	s, r = mustApply(t, s, command{Register: &again})
	require.Empty(t, r.Code, "the same disk may move to another address")
	m, _ := s.Member(2)
	require.Equal(t, "elsewhere", m.HTTP)

	next, r := mustApply(t, s, command{Register: &wiped})
	require.Equal(t, kv.CodeBadRequest, r.Code)
	require.Same(t, s, next)
}

func TestStrangersAndWrongNamesDoNotRegister(t *testing.T) {
	for _, m := range []Member{member(4, "n4", 1), member(1, "n2", 1)} {
		s := formed(t)
		next, r := mustApply(t, s, command{Register: &m})
		require.Equal(t, kv.CodeBadRequest, r.Code)
		require.Same(t, s, next)
	}
}

func TestMapChangesOneEpochAtATime(t *testing.T) {
	s := formed(t)
	m, err := ring.Place(s.nodes(), ring.Config{Partitions: 4, Replicas: 3, Vnodes: 64})
	require.NoError(t, err)
	m.Epoch = 2
	next, r := mustApply(t, s, command{Map: &m})
	require.Equal(t, kv.CodeBadRequest, r.Code)
	require.Same(t, s, next)

	m.Epoch = 1
	s, r = mustApply(t, s, command{Map: &m})
	require.Empty(t, r.Code)
	require.True(t, s.Ready())
	_, r = mustApply(t, s, command{Map: &m})
	require.Equal(t, kv.CodeBadRequest, r.Code, "a map decided on the same epoch by another leader must lose")
}

func TestLongestPrefixDecidesThePolicy(t *testing.T) {
	s := formed(t)
	for _, prefix := range []string{"user:", "", "user:vip:"} {
		p := kv.Policy{Prefix: []byte(prefix), Default: kv.LevelEventual, Quorum: kv.Quorum{W: 1}}
		if prefix == "user:vip:" {
			p.Default = kv.LevelStrong
		}
		s, _ = mustApply(t, s, command{PutPolicy: &p})
	}
	p, ok := s.PolicyFor([]byte("user:vip:7"))
	require.True(t, ok)
	require.Equal(t, kv.LevelStrong, p.Default)
	p, _ = s.PolicyFor([]byte("user:v"))
	require.Equal(t, "user:", string(p.Prefix))

	prefix := []byte("user:vip:")
	s, _ = mustApply(t, s, command{DeletePolicy: &prefix})
	p, _ = s.PolicyFor([]byte("user:vip:7"))
	require.Equal(t, "user:", string(p.Prefix), "a deleted policy returns its keys to the next shorter prefix")
	require.Equal(t, uint64(4), s.PolicyEpoch)
}

func TestPolicyThatNoPartitionCanHonourIsRefused(t *testing.T) {
	s := formed(t)
	p := kv.Policy{Prefix: []byte("a"), Quorum: kv.Quorum{N: 4}}
	next, r := mustApply(t, s, command{PutPolicy: &p})
	require.Equal(t, kv.CodeBadQuorum, r.Code)
	require.Same(t, s, next)
}

func TestUnreadableCommandStopsTheGroup(t *testing.T) {
	for _, raw := range []string{"", "{", "{}", `{"unheard_of":1}`} {
		_, _, err := apply(formed(t), []byte(raw))
		require.ErrorIs(t, err, errCommand, raw)
	}
}

func TestEmptyDiskIsRefusedUnderAKnownID(t *testing.T) {
	m := member(2, "n2", 20)
	s, _ := mustApply(t, formed(t), command{Register: &m})
	ask := Probe{ID: 2, Name: "n2", Disk: 99, Genesis: testGenesis(0)}
	require.Contains(t, AnswerProbe(s, s.Genesis, ask).Refusal, "never reused")

	ask.Disk = 20
	require.Empty(t, AnswerProbe(s, s.Genesis, ask).Refusal)
	ask = Probe{ID: 3, Name: "n3", Disk: 5, Genesis: testGenesis(0)}
	require.Empty(t, AnswerProbe(s, s.Genesis, ask).Refusal, "a slow starter has not registered yet")
	require.Empty(t, AnswerProbe(&State{}, testGenesis(0), ask).Refusal, "a cluster that forms knows nobody")

	for _, g := range []Genesis{
		{Partitions: 8, Replicas: 3, InitialMembers: testGenesis(0).InitialMembers},
		{Partitions: 4, Replicas: 2, InitialMembers: testGenesis(0).InitialMembers},
		{Partitions: 4, Replicas: 3, InitialMembers: []string{"n1", "n3", "n4"}},
	} {
		ask.Genesis = g
		require.NotEmpty(t, AnswerProbe(&State{}, testGenesis(0), ask).Refusal)
	}
}

func TestMachineRemembersItsStateAcrossARestart(t *testing.T) {
	e, err := storage.OpenInMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	m, err := NewMachine(e.State())
	require.NoError(t, err)

	g := testGenesis(7)
	raw, err := json.Marshal(command{Genesis: &g})
	require.NoError(t, err)
	b := e.NewBatch()
	replies, err := m.Apply(b, consensus.Committed{Pos: causal.Position{Term: 1, Index: 2}, Commands: [][]byte{raw}})
	require.NoError(t, err)
	require.Equal(t, []any{reply{}}, replies)
	require.NoError(t, e.ApplySync(b))
	b.Close()
	select {
	case <-m.Changed():
	default:
		t.Fatal("no change was announced")
	}

	again, err := NewMachine(e.State())
	require.NoError(t, err)
	require.Equal(t, m.State(), again.State())
}

// TestDriverLeadsANewClusterToItsFirstMap walks nextCommand through the life of a new cluster.
func TestDriverLeadsANewClusterToItsFirstMap(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Genesis = testGenesis(0)
	machine := &Machine{changed: make(chan struct{}, 1)}
	machine.state.Store(&State{Format: stateFormat})
	self := member(1, "n1", 10)
	s, err := New(cfg, Deps{Self: self, Machine: machine, Rand: rand.New(rand.NewPCG(1, 2)), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	step := func(c command) {
		next, r := mustApply(t, machine.State(), c)
		require.Empty(t, r.Code)
		machine.state.Store(next)
	}
	now := time.Now()

	_, ok := s.nextCommand(time.Time{})
	require.False(t, ok, "a follower waits for the leader's genesis")
	c, ok := s.nextCommand(now)
	require.True(t, ok)
	require.NotNil(t, c.Genesis)
	require.NotZero(t, c.Genesis.ClusterID)
	step(c)

	c, ok = s.nextCommand(now)
	require.True(t, ok)
	require.Equal(t, &self, c.Register)
	step(c)
	other := member(2, "n2", 20)
	step(command{Register: &other})

	_, ok = s.nextCommand(now)
	require.False(t, ok, "the third member still has time to register")
	c, ok = s.nextCommand(now.Add(-cfg.StragglerWait - time.Second))
	require.True(t, ok, "a majority does not wait for ever")
	require.NotNil(t, c.Map)
	step(c)
	_, ok = s.nextCommand(now)
	require.False(t, ok, "a formed cluster is left alone")
}
