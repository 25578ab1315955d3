package node

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
)

func TestAdmissionRefusesBeyondItsBudgetAndGivesItBack(t *testing.T) {
	a := admission{opsMax: 2, bytesMax: 100}
	require.NoError(t, a.enter(60))
	err := a.enter(60)
	require.Equal(t, kv.CodeOverloaded, kv.CodeOf(err))
	require.Equal(t, kv.OutcomeNotApplied, kv.AsError(err).Outcome)
	require.Positive(t, kv.AsError(err).RetryAfter)
	require.NoError(t, a.enter(40))
	require.Equal(t, kv.CodeOverloaded, kv.CodeOf(a.enter(0)), "two operations are the limit")
	a.leave(60)
	a.leave(40)
	require.Zero(t, a.ops.Load())
	require.Zero(t, a.bytes.Load())
	require.NoError(t, a.enter(1000), "a request larger than the budget is admitted alone")
}

func testConfig(name string) Config {
	cfg := DefaultConfig()
	cfg.Name, cfg.DataDir, cfg.InitialMembers = name, "data", []string{"n3", "n1", "n2"}
	cfg.GossipBind = "127.0.0.1:0"
	return cfg
}

func TestDirectoryOfAnotherNodeOrClusterIsRefused(t *testing.T) {
	e, err := storage.OpenInMemory()
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	id, err := loadIdentity(e, testConfig("n2"), 77)
	require.NoError(t, err)
	require.Equal(t, kv.NodeID(2), id.Node, "ids follow the sorted names, whatever order they were given in")
	require.False(t, id.Confirmed)

	again, err := loadIdentity(e, testConfig("n2"), 78)
	require.NoError(t, err)
	require.Equal(t, uint64(77), again.Disk, "a disk keeps its number")

	for what, change := range map[string]func(*Config){
		"--name":            func(c *Config) { c.Name = "n1" },
		"--initial-members": func(c *Config) { c.InitialMembers = []string{"n1", "n2", "n4"} },
		"--partitions":      func(c *Config) { c.Partitions = 8 },
		"--n":               func(c *Config) { c.Quorum.N = 2 },
	} {
		cfg := testConfig("n2")
		change(&cfg)
		_, err := loadIdentity(e, cfg, 77)
		require.ErrorIs(t, err, ErrForeignDirectory, what)
		require.ErrorContains(t, err, what)
	}
}

func TestConfigThatMakesNoSenseSaysWhatToDo(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"--name":               func(c *Config) { c.Name = "" },
		"--data-dir":           func(c *Config) { c.DataDir = "" },
		"not among":            func(c *Config) { c.Name = "n9" },
		"--partitions":         func(c *Config) { c.Partitions = 0 },
		"--n":                  func(c *Config) { c.Quorum.N = 4 },
		"r=4":                  func(c *Config) { c.Quorum.R = 4 },
		"w=4":                  func(c *Config) { c.Quorum.W = 4 },
		"request timeout":      func(c *Config) { c.RequestTimeout = 0 },
		"up to 7":              func(c *Config) { c.InitialMembers = []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"} },
		"requests in flight":   func(c *Config) { c.OpsInFlightMax = 0 },
		"drain timeout":        func(c *Config) { c.DrainTimeout = 0 },
		"default consistency ": func(c *Config) { c.DefaultLevel = kv.LevelUnset },
	} {
		cfg := testConfig("n1")
		require.NoError(t, cfg.Validate())
		change(&cfg)
		require.ErrorContains(t, cfg.Validate(), want)
	}
}

func TestForwardingNeverCallsAnUnknownWriteFailed(t *testing.T) {
	put, get, list := &kv.Request{Op: kv.OpPut}, &kv.Request{Op: kv.OpGet}, &kv.Request{Op: kv.OpList}
	broken := kv.Errorf(kv.CodeQuorumUnavailable, "%w", transport.ErrLinkBroken).WithOutcome(kv.OutcomeUnknown)
	notSent := kv.Errorf(kv.CodeQuorumUnavailable, "%w", transport.ErrNotSent)
	for _, c := range []struct {
		err  error
		r    *kv.Request
		want kv.Outcome
	}{
		{broken, put, kv.OutcomeUnknown},
		{fmt.Errorf("wrapped: %w", broken), put, kv.OutcomeUnknown},
		{errors.New("never heard of"), put, kv.OutcomeUnknown},
		{context.DeadlineExceeded, put, kv.OutcomeUnknown},
		{notSent, put, kv.OutcomeNotApplied},
		{broken, get, kv.OutcomeNotApplied},
		{broken, list, kv.OutcomeNotApplied},
		{errors.New("never heard of"), get, kv.OutcomeNotApplied},
	} {
		require.Equal(t, c.want, kv.AsError(forwardError(c.err, c.r, "n2")).Outcome, "%v of %v", c.err, c.r.Op)
	}
}

func TestOnlyWhatCanDoNoHarmIsOfferedAgain(t *testing.T) {
	n := &Node{}
	put, get := &kv.Request{Op: kv.OpPut}, &kv.Request{Op: kv.OpGet}
	noLeader := kv.Errorf(kv.CodeNoLeader, "x")
	require.True(t, n.mayRetry(put, noLeader))
	require.False(t, n.mayRetry(put, noLeader.WithOutcome(kv.OutcomeUnknown)))
	require.True(t, n.mayRetry(get, noLeader.WithOutcome(kv.OutcomeUnknown)))
	require.False(t, n.mayRetry(put, kv.Errorf(kv.CodeOverloaded, "x")))
	require.False(t, n.mayRetry(put, kv.Errorf(kv.CodeVersionMismatch, "x")))
	require.False(t, n.mayRetry(&kv.Request{Op: kv.OpPut, Hops: 1}, noLeader), "who forwarded it tries again")
}
