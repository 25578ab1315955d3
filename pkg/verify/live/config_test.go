package live

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/verify"
)

func TestConfigurationsThatMakeNoSenseAreRefusedWithAReason(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for want, change := range map[string]func(*Config){
		"0 nodes":               func(c *Config) { c.Nodes = 0 },
		"is not a workload":     func(c *Config) { c.Workload = "regsiter" },
		"is not a nemesis":      func(c *Config) { c.Nemeses = []string{"kill", "kil"} },
		"partition-one-way":     func(c *Config) { c.Nemeses = []string{"what"} },
		"a duration of":         func(c *Config) { c.Duration = 1 },
		"a rate of":             func(c *Config) { c.Rate = -1 },
		"0 clients":             func(c *Config) { c.Clients = 0 },
		"ahead by up to 1h":     func(c *Config) { c.ClockAhead = time.Hour },
		"at least 3 nodes":      func(c *Config) { c.Nodes, c.Nemeses = 2, []string{"wipe"} },
		"0 keys":                func(c *Config) { c.Keys = 0 },
		"is not a network":      func(c *Config) { c.Network = "tc" },
		"needs at least 2":      func(c *Config) { c.Nodes, c.Nemeses = 1, []string{"partition"} },
		"not of the form":       func(c *Config) { c.Endpoints = []string{"localhost:8081"} },
		"needs right clocks":    func(c *Config) { c.Workload, c.Nemeses = verify.WorkloadExpiry, []string{"kill", "clock"} },
		"started by this":       func(c *Config) { c.Endpoints, c.Network = []string{"http://a:1"}, NetworkNetns },
		"needs control over":    func(c *Config) { c.Endpoints, c.Nemeses = []string{"http://a:1", "http://a:2"}, []string{"kill"} },
		"possible are none, pa": func(c *Config) { c.Endpoints, c.Nemeses = []string{"http://a:1", "http://a:2"}, []string{"power"} },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		require.ErrorContains(t, cfg.Validate(), want)
	}
}

func TestAllStandsForEveryNemesisThatTheClusterAllows(t *testing.T) {
	decks, err := choose([]string{"all"}, 3, false)
	require.NoError(t, err)
	require.Len(t, decks, 8)
	require.Len(t, decks[0], 5, "the partitions take turns as one")
	decks, err = choose([]string{"all"}, 3, true)
	require.NoError(t, err)
	require.Len(t, decks, 4)
	decks, err = choose([]string{"all"}, 1, false)
	require.NoError(t, err)
	require.Len(t, decks, 6, "one node has nobody to be cut off from")
	cfg := DefaultConfig()
	cfg.Workload, cfg.Nemeses = verify.WorkloadExpiry, []string{"all"}
	decks, err = cfg.decks()
	require.NoError(t, err)
	require.Len(t, decks, 7, "a workload that needs right clocks")
	decks, err = choose([]string{"none"}, 3, false)
	require.NoError(t, err)
	require.Empty(t, decks)
}

func TestEveryWorkloadHasAValidConfiguration(t *testing.T) {
	for _, w := range verify.Workloads() {
		cfg := DefaultConfig()
		cfg.Workload, cfg.Rate = w, 100
		require.NoError(t, cfg.Validate())
		out := cfg.workload("p/", true)
		require.NoError(t, out.Validate())
		require.EqualValues(t, 80e6, out.Interval, "8 clients at 100 a second pause 80 ms each")
	}
}
