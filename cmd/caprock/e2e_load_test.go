package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// load writes to one node without a break until it is stopped, and remembers what was acknowledged and when.
type load struct {
	t      *testing.T
	target func(i int) string

	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	acked    []int
	ackedAt  []time.Time
	failures []string
}

func startLoad(t *testing.T, n *e2eNode, target func(i int) string) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{t: t, target: target, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for i := 0; ctx.Err() == nil; i++ {
			a, err := n.try(http.MethodPut, target(i), itoa(i))
			l.note(i, a, err)
			time.Sleep(5 * time.Millisecond) // leaves the machine to the cluster
		}
	}()
	t.Cleanup(l.finish)
	return l
}

func (l *load) note(i int, a answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && a.status == 200 {
		l.acked = append(l.acked, i)
		l.ackedAt = append(l.ackedAt, time.Now())
		return
	}
	l.failures = append(l.failures, fmt.Sprint(i, ": ", a.status, " ", a.body, " ", err))
}

func (l *load) finish() {
	l.stop()
	<-l.done
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// waitFor waits until more writes were acknowledged.
func (l *load) waitFor(more int) {
	l.t.Helper()
	want := l.count() + more
	require.Eventually(l.t, func() bool { return l.count() >= want }, e2eReady, e2ePoll, "writes do not go on")
}

// longestGap is the longest time without an acknowledgement since the moment.
func (l *load) longestGap(since time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var gap time.Duration
	last := since
	for _, at := range l.ackedAt {
		if at.After(since) {
			gap = max(gap, at.Sub(last))
			last = at
		}
	}
	return gap
}

// requireAll reads every acknowledged write of the load at the node.
func (l *load) requireAll(c *e2eCluster, n *e2eNode, level string) {
	l.t.Helper()
	for _, i := range l.acked {
		u, err := url.Parse(l.target(i))
		require.NoError(l.t, err)
		a := c.do(n, 200, http.MethodGet, u.EscapedPath()+"?consistency="+level, nil)
		require.Equal(l.t, itoa(i), a.body["value"], "acknowledged and lost")
	}
}

// killAllUnderLoad writes through every node at both levels, kills all of them in the midst of it, and requires every acknowledged
// write after they are back. The keys begin with the prefix.
func killAllUnderLoad(t *testing.T, c *e2eCluster, prefix string) {
	t.Helper()
	var loads []*load
	for i, n := range c.nodes {
		key := "/kv/" + prefix + "n" + itoa(i)
		loads = append(loads,
			startLoad(t, n, func(i int) string { return key + "s" + itoa(i) + "?consistency=strong" }),
			startLoad(t, n, func(i int) string { return key + "e" + itoa(i) + "?consistency=eventual&w=2" }))
	}
	for _, l := range loads {
		l.waitFor(15)
	}
	c.kill(c.nodes...)
	for _, l := range loads {
		l.finish()
	}
	c.start(c.nodes...)
	c.waitReady(c.nodes...)
	for i, l := range loads {
		l.requireAll(c, c.nodes[i%3], []string{"strong", "eventual"}[i%2])
	}
}
