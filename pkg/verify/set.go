package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// CheckSet checks keys to each of which one client adds elements: every put carries all elements that the client has added
// to the key so far, separated by spaces, and the key is left alone after a delete or an unknown write. At the end every
// acknowledged element must be there, an element of a failed write must not, and a key whose delete was acknowledged
// must be absent. This catches acknowledged writes that a later stamp buried, and deletes that came undone.
func CheckSet(h *History) Result {
	res := newResult("set")
	keys, groups := byKey(h.Ops(), func(*Op) bool { return true })
	for _, key := range keys {
		ops := groups[key]
		res.Keys++
		res.Operations += len(ops)
		checkSetKey(&res, key, ops)
	}
	return res
}

// setKey is what a key may hold at the end.
type setKey struct {
	must    map[string]*Op // acknowledged elements
	may     map[string]*Op // elements that were written or may have been
	deleted *Op            // the acknowledged delete that ended the key
	perhaps *Op            // the unknown delete that ended it
	last    *Op            // the last acknowledged write
}

func checkSetKey(res *Result, key string, ops []Op) {
	want := setKey{must: map[string]*Op{}, may: map[string]*Op{}}
	for i := range ops {
		want.write(&ops[i])
	}
	finals := 0
	for i := range ops {
		if op := &ops[i]; op.Final && op.Answered() {
			finals++
			want.checkFinal(res, key, op)
		}
	}
	if finals == 0 && want.last != nil {
		res.add("never read at the end", key, "nothing is known of what became of an acknowledged write", want.last)
	}
}

func (k *setKey) write(op *Op) {
	switch {
	case !op.MayHaveWritten():
	case op.Kind == kv.OpDelete && op.Wrote():
		clear(k.must)
		k.deleted, k.last = op, op
	case op.Kind == kv.OpDelete:
		k.perhaps = op
	default:
		for _, e := range strings.Fields(op.Value) {
			if _, ok := k.may[e]; !ok {
				k.may[e] = op
			}
			if _, ok := k.must[e]; !ok && op.Wrote() {
				k.must[e] = op
			}
		}
		if op.Wrote() {
			k.last, k.deleted = op, nil
		}
	}
}

func (k *setKey) checkFinal(res *Result, key string, op *Op) {
	if len(op.Siblings) > 0 {
		res.add("siblings", key, "one writer cannot leave concurrent versions", op)
		return
	}
	if k.deleted != nil {
		if op.Found {
			res.add("deleted key came back", key, "its delete was acknowledged and nothing was written after it", op, k.deleted)
		}
		return
	}
	if !op.Found && k.perhaps != nil {
		return
	}
	got := strings.Fields(op.Result)
	if dup := repeated(got); dup != "" {
		res.add("element twice", key, quote(dup)+" is in the set twice", op)
	}
	for _, e := range got {
		if k.may[e] == nil {
			res.add("element never added", key, quote(e)+" comes from no write, or from one that failed", op)
		}
	}
	var lost []string
	for e := range k.must {
		if !slices.Contains(got, e) {
			lost = append(lost, e)
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		res.add("acknowledged element lost", key, fmt.Sprintf("%d elements are gone: %q", len(lost), lost), op, k.must[lost[0]], k.last)
	}
}

// repeated returns an element that the list has twice, or "".
func repeated(list []string) string {
	seen := map[string]bool{}
	for _, e := range list {
		if seen[e] {
			return e
		}
		seen[e] = true
	}
	return ""
}
