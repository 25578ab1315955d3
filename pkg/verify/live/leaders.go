package live

import (
	"context"
	"sync"
	"time"
)

// leadersEvery is how often each node is asked who leads.
const leadersEvery = 200 * time.Millisecond

// leaders counts changes of leadership as they are seen from outside.
type leaders struct {
	// mu guards the fields below.
	mu sync.Mutex
	// seen holds, by partition, the terms in which a leader was seen. A term has one leader at most.
	seen map[int]map[uint64]string
}

func newLeaders() *leaders { return &leaders{seen: map[int]map[uint64]string{}} }

// see records what a node says.
func (l *leaders) see(partitions []partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range partitions {
		if p.Leader == "" {
			continue
		}
		if l.seen[p.Partition] == nil {
			l.seen[p.Partition] = map[uint64]string{}
		}
		l.seen[p.Partition][p.Term] = p.Leader
	}
}

// changes returns the number of leaderships that were seen beyond the first of each partition.
func (l *leaders) changes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := 0
	for _, terms := range l.seen {
		count += len(terms) - 1
	}
	return count
}

// watch asks every node again and again until ctx is done. A node that does not answer has nothing to say.
func (l *leaders) watch(ctx context.Context, nodes []*node) {
	var asking sync.WaitGroup
	for _, n := range nodes {
		asking.Go(func() {
			for ctx.Err() == nil {
				if partitions, err := n.admin.partitions(ctx); err == nil {
					l.see(partitions)
				}
				pause(ctx, leadersEvery)
			}
		})
	}
	asking.Wait()
}
