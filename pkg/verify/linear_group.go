package verify

import (
	"fmt"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// batchKeys is how many keys there are of one tag. Each more makes every step of a search dearer.
const batchKeys = 4

// group is the state of the keys of one tag, in the order of the letters that they end with.
type group [batchKeys]register

func (group) home(op *Op) string { return TagOf(op.Key) }

func (g group) initial() group {
	for i := range g {
		g[i] = g[i].initial()
	}
	return g
}

// groupKey returns key i of the tag.
func groupKey(tag string, i int) string { return tag + string(rune('a'+i)) }

// place returns which of its tag's keys the key is; false when it is none of them.
func (group) place(key string) (int, bool) {
	letter := strings.TrimPrefix(key, TagOf(key))
	if len(letter) != 1 || letter[0] < 'a' || letter[0] >= 'a'+batchKeys {
		return 0, false
	}
	return int(letter[0] - 'a'), true
}

// apply implements state.
func (g group) apply(s *step) (group, bool) {
	op := s.op
	switch {
	case op.Kind == kv.OpList:
		return g.list(s)
	case op.Kind == kv.OpBatch && op.Missed:
		return g.missed(s)
	case op.Kind == kv.OpBatch:
		if next, ok := g.batch(s); ok || s.applied {
			return next, ok
		}
		return g, true // as a single write of which it is not known whether it was applied
	}
	i, ok := g.place(op.Key)
	if !ok {
		return g, false
	}
	next, ok := g[i].apply(s)
	g[i] = next
	return g, ok
}

// list is a listing: what it shows is there, what it does not show is not.
func (g group) list(s *step) (group, bool) {
	var listed [batchKeys]bool
	for _, row := range s.op.Listed {
		i, ok := g.place(row.Key)
		if !ok || listed[i] {
			return g, false
		}
		listed[i] = true
		if g[i], ok = g[i].shows(row.Value, row.Version, s); !ok {
			return g, false
		}
	}
	for i := range g {
		if listed[i] {
			continue
		}
		next, ok := g[i].absent(s)
		if !ok {
			return g, false
		}
		g[i] = next
	}
	return g, true
}

// batch is a batch that is applied: all of its conditions hold, and all of its keys change.
func (g group) batch(s *step) (group, bool) {
	for n := range s.op.Items {
		part := s.op.item(n)
		i, ok := g.place(part.Key)
		if !ok {
			return g, false
		}
		// The keys of a batch are different ones, so that each condition is about the state before it.
		if g[i], ok = g[i].put(&part, s); !ok {
			return g, false
		}
	}
	return g, true
}

// missed is a batch one of whose conditions observed the version that was answered. Where several can have, nothing is
// learned about any.
func (g group) missed(s *step) (group, bool) {
	var next group
	candidates := 0
	for n := range s.op.Items {
		item := &s.op.Items[n]
		i, ok := g.place(item.Key)
		if !ok {
			return g, false
		}
		if item.Condition.Kind == kv.ConditionNone {
			continue
		}
		if seen, ok := g[i].missed(item.Condition, s.op.Version, s); ok {
			next = g
			next[i] = seen
			candidates++
		}
	}
	switch candidates {
	case 0:
		return g, false
	case 1:
		return next, true
	default:
		return g, true
	}
}

// String describes the state.
func (g group) String() string {
	parts := make([]string, len(g))
	for i := range g {
		parts[i] = fmt.Sprintf("%c: %s", 'a'+i, g[i])
	}
	return strings.Join(parts, "; ")
}
