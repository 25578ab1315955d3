package membership

import (
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func testDeps() Deps {
	return Deps{
		Logger: slog.New(slog.DiscardHandler), Rand: rand.New(rand.NewPCG(1, 2)),
		Epoch: func() kv.Epoch { return 1 }, HLC: func() uint64 { return 1 }, KnownAddrs: func() []string { return nil },
	}
}

func testConfig() Config {
	c := DefaultConfig()
	c.Name, c.BindAddr = "n1", "127.0.0.1:7001"
	return c
}

func TestMetaThatGossipCannotCarryIsRefused(t *testing.T) {
	m, err := New(testConfig(), testDeps())
	require.NoError(t, err)
	// The longest description that operators are likely to make fits.
	host := strings.Repeat("h", 63) + ".svc"
	usual := Meta{
		ID: 1 << 40, HTTP: host + ":8080", GRPC: host + ":9000", Gossip: host + ":7000", RESP: host + ":6380",
		Zone: "eu-central-1a", DC: "frankfurt", Cluster: 1<<64 - 1,
	}
	require.NoError(t, m.SetSelf(usual))
	kept := m.self
	usual.Zone = strings.Repeat("z", memberlist.MetaMaxSize)
	require.ErrorContains(t, m.SetSelf(usual), "shorten")
	require.Equal(t, kept, m.self, "the last good description stays")
}

func TestProgressSurvivesItsCodec(t *testing.T) {
	p := progress{epoch: 7, hlc: 1 << 60}
	got, ok := decodeProgress(p.encode())
	require.True(t, ok)
	require.Equal(t, p, got)
	for _, garbage := range [][]byte{nil, {}, {1}, make([]byte, progressBytes-1), make([]byte, progressBytes+1)} {
		_, ok := decodeProgress(garbage)
		require.False(t, ok)
	}
}

func TestConfigRefusesNonsense(t *testing.T) {
	require.NoError(t, testConfig().Validate())
	for name, damage := range map[string]func(*Config){
		"no name":         func(c *Config) { c.Name = "" },
		"no port":         func(c *Config) { c.BindAddr = "127.0.0.1" },
		"no such port":    func(c *Config) { c.BindAddr = "127.0.0.1:70000" },
		"a port's name":   func(c *Config) { c.BindAddr = "127.0.0.1:http" },
		"no probes":       func(c *Config) { c.ProbeInterval = 0 },
		"no probe time":   func(c *Config) { c.ProbeTimeout = -time.Second },
		"no re-join":      func(c *Config) { c.RejoinInterval = 0 },
		"no first join":   func(c *Config) { c.FirstJoinInterval = 0 },
		"no gossip":       func(c *Config) { c.GossipInterval = 0 },
		"no push-pull":    func(c *Config) { c.PushPullInterval = 0 },
		"no leaving time": func(c *Config) { c.LeaveTimeout = 0 },
	} {
		c := testConfig()
		damage(&c)
		require.Error(t, c.Validate(), name)
		_, err := New(c, testDeps())
		require.Error(t, err, name)
	}
	deps := testDeps()
	deps.KnownAddrs = nil
	_, err := New(testConfig(), deps)
	require.ErrorContains(t, err, "KnownAddrs")
}

// TestOnlyMembersOutOfSightAreJoinedAgain checks who is worth a re-join.
func TestOnlyMembersOutOfSightAreJoinedAgain(t *testing.T) {
	deps := testDeps()
	deps.KnownAddrs = func() []string { return []string{"10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", ""} }
	cfg := testConfig()
	cfg.Join = []string{cfg.BindAddr, "10.0.0.2:1", "10.0.0.9:1"}
	m, err := New(cfg, deps)
	require.NoError(t, err)
	m.members["n3"] = Member{Name: "n3", Meta: Meta{Gossip: "10.0.0.3:1"}, Alive: true}
	m.members["n4"] = Member{Name: "n4", Meta: Meta{Gossip: "10.0.0.4:1"}}
	require.Equal(t, []string{"10.0.0.2:1", "10.0.0.9:1", "10.0.0.4:1"}, m.missing())
}
