package live

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/verify"
)

const (
	convergeReaders = 8
	// keysShownMax bounds the keys that an anomaly names.
	keysShownMax = 5
)

// historyKeys returns the keys that a history used, in order.
func historyKeys(h *verify.History) []string {
	seen := map[string]bool{}
	var keys []string
	for _, op := range h.Ops() {
		for _, key := range op.Keys() {
			if !seen[key] {
				seen[key] = true
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// view is what a node answered about a key, or that it did not.
type view struct {
	node, text string
	failed     bool
}

// converge waits until all nodes answer the same about every key at level local, each from a replica of its own where it has
// one. It returns what they still disagree on when the time is over.
func converge(ctx context.Context, t *target, nodes []*node, keys []string, limit time.Duration) []verify.Anomaly {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var views map[string][]view
	for {
		views = differing(ctx, t, nodes, keys)
		keys = keys[:0]
		for key := range views {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		if len(keys) == 0 || !pause(ctx, 2*pollEvery) {
			break
		}
	}
	var out []verify.Anomaly
	for _, key := range keys[:min(len(keys), keysShownMax)] {
		parts := make([]string, 0, len(nodes))
		for _, v := range views[key] {
			parts = append(parts, v.node+" answers "+v.text)
		}
		a := anomaly("replicas do not converge", fmt.Sprintf("%v after the last fault was mended: %s (%d keys differ in all)",
			limit.Round(time.Second), strings.Join(parts, ", "), len(keys)))
		a.Key = key
		out = append(out, a)
	}
	return out
}

// differing reads every key at every node and returns those about which nodes do not agree.
func differing(ctx context.Context, t *target, nodes []*node, keys []string) map[string][]view {
	out := map[string][]view{}
	var mu sync.Mutex // guards out
	var readers sync.WaitGroup
	for reader := range convergeReaders {
		readers.Go(func() {
			for i := reader; i < len(keys); i += convergeReaders {
				views := readAll(ctx, t, nodes, keys[i])
				if !agree(views) {
					mu.Lock()
					out[keys[i]] = views
					mu.Unlock()
				}
			}
		})
	}
	readers.Wait()
	return out
}

func agree(views []view) bool {
	for _, v := range views {
		if v.failed || v.text != views[0].text {
			return false
		}
	}
	return true
}

func readAll(ctx context.Context, t *target, nodes []*node, key string) []view {
	views := make([]view, 0, len(nodes))
	for i, n := range nodes {
		if n.gone {
			continue
		}
		res, err := readLocal(ctx, t, i, key)
		v := view{node: n.name, text: answerText(&res)}
		if err != nil && kv.CodeOf(err) != kv.CodeKeyNotFound {
			v.text, v.failed = "the error "+err.Error(), true
		}
		views = append(views, v)
	}
	return views
}

func readLocal(ctx context.Context, t *target, node int, key string) (kv.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	return t.at(ctx, node, &kv.Request{Op: kv.OpGet, Level: kv.LevelLocal, Key: []byte(key)})
}

// answerText describes what a read was answered, in the same words for the same content.
func answerText(r *kv.Response) string {
	switch {
	case len(r.Siblings) > 0:
		texts := make([]string, len(r.Siblings))
		for i, s := range r.Siblings {
			if texts[i] = strconv.Quote(string(s.Value)); s.Deleted {
				texts[i] = "a deletion of " + s.Timestamp.Format(time.RFC3339Nano)
			}
		}
		slices.Sort(texts)
		return "{" + strings.Join(texts, ", ") + "}"
	case !r.Found:
		return "nothing"
	default:
		return strconv.Quote(string(r.Value)) + " version " + strconv.FormatUint(r.Version, 10)
	}
}
