package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
)

// clients makes operations through the Go client until it is stopped, at each level, reading and writing, and keeps what
// failed.
type clients struct {
	operations atomic.Int64
	mu         sync.Mutex // guards failures
	failures   []string
	wg         sync.WaitGroup
}

func startClients(ctx context.Context, c *client.Client, count int) *clients {
	l := &clients{}
	levels := []client.Option{client.Strong(), client.Eventual()}
	for i := range count {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key, level := fmt.Sprintf("client-%d-%d", i, n%20), levels[n%len(levels)]
				// A call of its own time: the end of the load must not fail it.
				_, err := c.SetContext(context.WithoutCancel(ctx), key+fmt.Sprint(n%len(levels)), fmt.Sprint(n), level)
				l.note("put", key, err)
				_, err = c.GetContext(context.WithoutCancel(ctx), key+fmt.Sprint(n%len(levels)), level)
				l.note("get", key, err)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *clients) note(what, key string, err error) {
	l.operations.Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failures = append(l.failures, fmt.Sprintf("%s %s %s: %v", time.Now().Format("05.000"), what, key, err))
	}
}

func TestRollingRestartOfFiveNodesFailsNoRequestOfTheGoClient(t *testing.T) {
	c := newClusterOf(t, 5)
	c.start(c.nodes...)
	c.waitReady(c.nodes...)
	var endpoints []string
	for _, n := range c.nodes {
		endpoints = append(endpoints, n.grpc)
	}
	db, err := client.NewClient(endpoints)
	require.NoError(t, err)
	defer db.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	load := startClients(ctx, db, 16)
	for _, n := range c.nodes {
		time.Sleep(500 * time.Millisecond)
		before := load.operations.Load()
		require.NoError(t, c.terminate(n), "%s did not stop cleanly", n.name)
		require.Greater(t, load.operations.Load(), before, "nothing went on while %s stopped", n.name)
		c.start(n)
		c.waitReady(n)
	}
	time.Sleep(500 * time.Millisecond)
	stop()
	load.wg.Wait()
	require.Empty(t, load.failures, "of %d operations", load.operations.Load())
	require.Greater(t, load.operations.Load(), int64(2000))
	t.Logf("%d operations", load.operations.Load())
}
