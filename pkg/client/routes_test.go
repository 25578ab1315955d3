package client

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/ring"
)

// leaders makes the nodes answer as those of a cluster do whose partition p is led by node p mod 3.
func (c *cluster) leaders(level kvpb.Level, leader func(p int) int) {
	for _, n := range c.nodes {
		n.mu.Lock()
		n.header = metadata.Pairs(kvwire.HeaderNode, n.name, kvwire.HeaderPartitions, "16")
		n.answer = func(op *kvpb.Operation) *kvpb.Result {
			r := n.ok(op)
			r.Level = level
			leads := c.nodes[leader(int(ring.PartitionOf(op.GetKey(), 16)))].name
			if level == kvpb.Level_LEVEL_STRONG {
				r.Replicas = []string{leads, n.name} // a follower answers in its leader's place
			} else {
				r.Coordinator = leads
			}
			return r
		}
		n.mu.Unlock()
	}
}

// newRoutedCluster is newCluster with nodes that say who they are.
func newRoutedCluster(t *testing.T, leader func(p int) int) *cluster {
	cl := newCluster(t, 3)
	for _, n := range cl.nodes {
		n.stop()
	}
	cl.leaders(kvpb.Level_LEVEL_STRONG, leader)
	for _, n := range cl.nodes {
		n.start()
	}
	return cl
}

// requireAt sends one operation a key and checks that each arrived at the node it should.
func requireAt(t *testing.T, c *Client, cl *cluster, keys int, node func(p int) int, options ...Option) {
	t.Helper()
	before := make([]int, len(cl.nodes))
	for i, n := range cl.nodes {
		before[i], _ = n.seen()
	}
	want := make([]int, len(cl.nodes))
	for k := range keys {
		key := fmt.Sprintf("k%d", k)
		want[node(int(ring.PartitionOf([]byte(key), 16)))]++
		_, err := c.GetContext(t.Context(), key, options...)
		require.NoError(t, err)
	}
	for i, n := range cl.nodes {
		after, _ := n.seen()
		require.Equal(t, want[i], after-before[i], "operations at %s", n.name)
	}
}

func TestStrongOperationsGoStraightToTheLeader(t *testing.T) {
	leader := func(p int) int { return p % 3 }
	cl := newRoutedCluster(t, leader)
	c := cl.client()
	for k := range 200 { // learns every partition's leader, wherever it asks
		_, err := c.Get(fmt.Sprintf("k%d", k))
		require.NoError(t, err)
	}
	requireAt(t, c, cl, 200, leader)

	t.Run("and find the new one when it moves", func(t *testing.T) {
		moved := func(p int) int { return (p + 1) % 3 }
		cl.leaders(kvpb.Level_LEVEL_STRONG, moved)
		for k := range 200 {
			_, err := c.Get(fmt.Sprintf("k%d", k))
			require.NoError(t, err)
		}
		requireAt(t, c, cl, 200, moved)
	})
	t.Run("and elsewhere while its node is down", func(t *testing.T) {
		cl.nodes[1].stop()
		for k := range 200 {
			_, err := c.Get(fmt.Sprintf("k%d", k))
			require.NoError(t, err)
		}
	})
}

func TestALeaderThatIsCutOffIsNotAskedForEver(t *testing.T) {
	cl := newRoutedCluster(t, func(int) int { return 0 })
	c := cl.client()
	_, err := c.Get("k")
	require.NoError(t, err)
	cl.leaders(kvpb.Level_LEVEL_STRONG, func(int) int { return 1 })
	for name, answer := range map[string]func(*kvpb.Operation) *kvpb.Result{
		"it answers late and refuses": func(*kvpb.Operation) *kvpb.Result {
			time.Sleep(100 * time.Millisecond)
			return refusal(kv.CodeNoLeader, kvpb.Outcome_OUTCOME_NOT_APPLIED)
		},
		"it does not answer": func(*kvpb.Operation) *kvpb.Result { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			cl.nodes[0].mu.Lock()
			cl.nodes[0].answer = answer
			cl.nodes[0].mu.Unlock()
			c.routes.table.Load().strong[ring.PartitionOf([]byte("k"), 16)].Store(0)
			failures := 0
			for range 20 {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				if _, err := c.GetContext(ctx, "k"); err != nil {
					failures++
				}
				cancel()
			}
			require.LessOrEqual(t, failures, 2, "of 20")
		})
	}
}

func TestEventualOperationsTakeTurnsAmongReplicas(t *testing.T) {
	cl := newRoutedCluster(t, func(int) int { return 0 })
	for _, n := range cl.nodes {
		n.mu.Lock()
		n.answer = func(op *kvpb.Operation) *kvpb.Result { // every node is a replica
			r := n.ok(op)
			r.Level = kvpb.Level_LEVEL_EVENTUAL
			return r
		}
		n.mu.Unlock()
	}
	c := cl.client()
	for k := range 300 {
		_, err := c.GetContext(t.Context(), fmt.Sprintf("k%d", k), Eventual())
		require.NoError(t, err)
	}
	for _, n := range cl.nodes {
		operations, _ := n.seen()
		require.Equal(t, 100, operations, n.name)
	}
}

func TestEventualOperationsThatAreHandedOnGoToTheReplicaNextTime(t *testing.T) {
	replica := func(p int) int { return p % 2 } // the third node is a replica of nothing
	cl := newRoutedCluster(t, replica)
	cl.leaders(kvpb.Level_LEVEL_EVENTUAL, replica)
	c := cl.client()
	for k := range 600 { // every partition is asked for at the node that hands on
		_, err := c.GetContext(t.Context(), fmt.Sprintf("k%d", k), Eventual())
		require.NoError(t, err)
	}
	requireAt(t, c, cl, 200, replica, Eventual())
}
