package verify

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// CheckAppend checks lists that clients extend with a strong read and a conditional put of what they read and one new
// element, separated by spaces. Of each key: every list that was read or acknowledged is a prefix of the longest;
// no element is in it twice; an acknowledged element is in every list read later; elements whose appends did not overlap are
// in that order; an element of a failed append is nowhere. Each acknowledged key must have been read at the end.
func CheckAppend(h *History) Result {
	res := newResult("append")
	keys, groups := byKey(h.Ops(), func(op *Op) bool { return op.Level == kv.LevelStrong })
	for _, key := range keys {
		ops := groups[key]
		res.Keys++
		res.Operations += len(ops)
		checkAppendKey(&res, key, ops)
	}
	return res
}

// list is the state of a key that somebody saw.
type list struct {
	op       *Op
	elements []string
}

func checkAppendKey(res *Result, key string, ops []Op) {
	lists, adds := appendLists(ops)
	if len(lists) == 0 {
		return
	}
	longest := lists[0]
	for _, l := range lists {
		if len(l.elements) > len(longest.elements) {
			longest = l
		}
	}
	position := map[string]int{}
	for i, e := range longest.elements {
		if _, ok := position[e]; ok {
			res.add("element twice", key, quote(e)+" is in the list twice", longest.op)
		}
		position[e] = i
		switch add := adds[e]; {
		case add == nil:
			res.add("element never appended", key, "nobody appended "+quote(e), longest.op)
		case !add.MayHaveWritten():
			res.add("failed append read", key, quote(e)+" comes from an append that failed", longest.op, add)
		}
	}
	for _, l := range lists {
		if len(l.elements) > len(longest.elements) || !slices.Equal(l.elements, longest.elements[:len(l.elements)]) {
			res.add("order differs", key, "one list is no prefix of the other", l.op, longest.op)
		}
	}
	checkLost(res, key, lists, ops, position)
	checkOrder(res, key, ops, position)
}

// appendLists returns the lists that were seen, and who appended each element.
func appendLists(ops []Op) (lists []list, adds map[string]*Op) {
	adds = map[string]*Op{}
	for i := range ops {
		op := &ops[i]
		switch {
		case op.Kind == kv.OpPut:
			adds[lastElement(op.Value)] = op
			if op.Wrote() {
				lists = append(lists, list{op, strings.Fields(op.Value)})
			}
		case op.Answered() && op.Found:
			lists = append(lists, list{op, strings.Fields(op.Result)})
		case op.Answered():
			lists = append(lists, list{op: op})
		}
	}
	return lists, adds
}

// checkLost reports lists that lack an element that was acknowledged, or had been read, before they were asked for.
func checkLost(res *Result, key string, lists []list, ops []Op, position map[string]int) {
	finals := false
	for _, l := range lists {
		finals = finals || l.op.Final
	}
	// The longest list known so far grows as answers come in; a list asked for later has to be as long.
	byReturn, byCall := slices.Clone(lists), slices.Clone(lists)
	sort.Slice(byReturn, func(i, j int) bool { return byReturn[i].op.Return < byReturn[j].op.Return })
	sort.Slice(byCall, func(i, j int) bool { return byCall[i].op.Call < byCall[j].op.Call })
	var known *list
	next := 0
	for i := range byCall {
		l := &byCall[i]
		for ; next < len(byReturn) && byReturn[next].op.Return < l.op.Call; next++ {
			if known == nil || len(byReturn[next].elements) > len(known.elements) {
				known = &byReturn[next]
			}
		}
		if known != nil && len(l.elements) < len(known.elements) {
			res.add("acknowledged element lost", key, fmt.Sprintf("the list had %d elements and later has %d; %q are gone",
				len(known.elements), len(l.elements), known.elements[len(l.elements):]), l.op, known.op)
		}
	}
	for i := range ops {
		op := &ops[i]
		if op.Kind != kv.OpPut || !op.Wrote() {
			continue
		}
		if e := lastElement(op.Value); !hasKey(position, e) {
			res.add("acknowledged element lost", key, quote(e)+" is not in the longest list", op)
		}
		if !finals {
			res.add("never read at the end", key, "nothing is known of what became of an acknowledged append", op)
			return
		}
	}
}

// checkOrder reports acknowledged elements that are in the list before one whose append had ended before theirs began.
func checkOrder(res *Result, key string, ops []Op, position map[string]int) {
	type added struct {
		op *Op
		at int
	}
	var all []added
	for i := range ops {
		op := &ops[i]
		if op.Kind != kv.OpPut || !op.Wrote() {
			continue
		}
		if at, ok := position[lastElement(op.Value)]; ok {
			all = append(all, added{op, at})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at < all[j].at })
	// Whoever called last among those in front must not have called after this one had ended.
	var latest *Op
	for _, a := range all {
		if latest != nil && latest.Call > a.op.Return {
			res.add("order against real time", key, "the first ended before the second began, and comes after it in the list", a.op, latest)
		}
		if latest == nil || a.op.Call > latest.Call {
			latest = a.op
		}
	}
}

// lastElement returns the element that an append added, "" when its value is no list.
func lastElement(value string) string {
	elements := strings.Fields(value)
	if len(elements) == 0 {
		return ""
	}
	return elements[len(elements)-1]
}

func hasKey(m map[string]int, k string) bool {
	_, ok := m[k]
	return ok
}
