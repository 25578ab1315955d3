package verify

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// explainTail is how many of the last operations that could be ordered an explanation names.
	explainTail = 4
	// visualKeysMax bounds the keys of one HTML page.
	visualKeysMax = 16
)

// explain adds the anomaly of a key whose operations have no order: the longest part that has one, and the operation that
// could not follow.
func (s *search[S]) explain(res *Result, key string, timeout time.Duration) {
	m := newModel[S](s.stepsMax)
	_, info := porcupine.CheckOperationsVerbose(m.model, operations(s.all), timeout)
	var longest []int
	for _, partial := range info.PartialLinearizations() {
		for _, order := range partial {
			// Of several the first in order of operations, so that one history is always explained alike.
			if len(order) > len(longest) || len(order) == len(longest) && slices.Compare(order, longest) < 0 {
				longest = order
			}
		}
	}
	var state S
	state = state.initial()
	placed := map[int]bool{}
	for _, i := range longest {
		placed[i] = true
		state, _ = state.apply(&s.all[i]) // it could be placed there
	}
	stuck := -1
	for i := range s.all {
		if !placed[i] && (stuck < 0 || s.all[i].until < s.all[stuck].until) {
			stuck = i
		}
	}
	if stuck < 0 {
		res.add("not linearizable", key, "no order of the operations explains the answers")
		return
	}
	ops := []*Op{s.all[stuck].op}
	for _, i := range longest[max(0, len(longest)-explainTail):] {
		ops = append(ops, s.all[i].op)
	}
	res.add("not linearizable", key, fmt.Sprintf(
		"no order of its %d operations explains the answers; after %d of them the key is %s, where the first of these cannot follow the others",
		len(s.all), len(longest), state), ops...)
}

// Visualize writes porcupine's HTML page of the keys' strong operations, all keys when none is given, 16 at most. The
// history's notes become annotations. In a history with batches each key stands for all of its tag.
func Visualize(h *History, keys []string, w io.Writer) error {
	ops := h.Ops()
	if slices.ContainsFunc(ops, func(op Op) bool { return op.Kind == kv.OpBatch || op.Kind == kv.OpList }) {
		tags := make([]string, len(keys))
		for i, key := range keys {
			tags[i] = TagOf(key)
		}
		slices.Sort(tags)
		return visualize[group](h, slices.Compact(tags), w)
	}
	return visualize[register](h, keys, w)
}

func visualize[S state[S]](h *History, keys []string, w io.Writer) error {
	var s S
	all, groups := grouped(h.Ops(), func(op *Op) bool { return op.Level == kv.LevelStrong }, s.home)
	if len(keys) == 0 {
		keys = all
	}
	var history []porcupine.Operation
	shown := 0
	for _, key := range keys {
		ops := groups[key]
		if len(ops) == 0 {
			continue
		}
		if shown++; shown > visualKeysMax {
			break
		}
		_, steps := prepare(ops)
		history = append(history, operations(steps)...)
	}
	m := newModel[S](stepsPerKeyMax)
	m.model.Partition = func(history []porcupine.Operation) [][]porcupine.Operation { return partitioned(history, s.home) }
	_, info := porcupine.CheckOperationsVerbose(m.model, history, 0)
	var annotations []porcupine.Annotation
	for _, n := range h.Notes() {
		annotations = append(annotations, porcupine.Annotation{Tag: "events", Start: n.Time, Description: n.Text})
	}
	info.AddAnnotations(annotations)
	// The page replays the orders that were found, which the limit must not stop.
	return porcupine.Visualize(newModel[S](math.MaxInt64).model, info, w)
}

func partitioned(history []porcupine.Operation, home func(*Op) string) [][]porcupine.Operation {
	groups := map[string][]porcupine.Operation{}
	var keys []string
	for _, o := range history {
		key := home(o.Input.(*step).op)
		if _, ok := groups[key]; !ok {
			keys = append(keys, key)
		}
		groups[key] = append(groups[key], o)
	}
	slices.Sort(keys)
	out := make([][]porcupine.Operation, len(keys))
	for i, key := range keys {
		out[i] = groups[key]
	}
	return out
}
