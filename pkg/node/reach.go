package node

import (
	"context"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// pingTimeout is how long a node has to say that it is there. Who waits for it has waited for consensus.SilenceMax
	// before, and is to be answered within a second.
	pingTimeout = 200 * time.Millisecond
	// pingFresh is for how long an answer, or the lack of one, is good for others who ask.
	pingFresh = 250 * time.Millisecond
)

// reach finds out which nodes can be reached now. Gossip takes seconds to notice a cut, and the strong lane does not say who
// is missing; neither is asked while all goes well.
type reach struct {
	// ping asks a node, and returns nil when it answered.
	ping func(ctx context.Context, to kv.NodeID) error

	mu    sync.Mutex // guards known
	known map[kv.NodeID]*ping
}

// ping is one question to one node, shared by all who want to know.
type ping struct {
	asked    time.Time
	done     chan struct{} // closed once answered is set
	answered bool
}

func newReach(ask func(ctx context.Context, to kv.NodeID) error) *reach {
	return &reach{ping: ask, known: map[kv.NodeID]*ping{}}
}

// of returns which of the nodes answer, within pingTimeout.
func (r *reach) of(ctx context.Context, nodes []kv.NodeID) []kv.NodeID {
	pings := make([]*ping, len(nodes))
	var asking sync.WaitGroup
	for i, id := range nodes {
		p, fresh := r.enter(id)
		pings[i] = p
		if fresh {
			asking.Go(func() { r.ask(id, p) })
		}
	}
	asking.Wait()
	var out []kv.NodeID
	for i, p := range pings {
		select {
		case <-p.done:
			if p.answered {
				out = append(out, nodes[i])
			}
		case <-ctx.Done():
		}
	}
	return out
}

// enter returns the question to the node that is under way or was answered a moment ago, or a new one that is to be asked.
func (r *reach) enter(id kv.NodeID) (p *ping, ask bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.known[id]
	if ok && time.Since(p.asked) < pingFresh {
		return p, false
	}
	p = &ping{asked: time.Now(), done: make(chan struct{})}
	r.known[id] = p
	return p, true
}

// ask asks. The question is not its first asker's alone, so that it does not end with that one's request.
func (r *reach) ask(id kv.NodeID, p *ping) {
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	p.answered = r.ping(ctx, id) == nil
	close(p.done)
}
