package verify

import (
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
)

// CausalOptions say what was promised to the operations of a causal history.
type CausalOptions struct {
	// Overlap: every read asked so many replicas that it met each acknowledged write (R+W > N, not sloppy, not local).
	// Then a read reflects each write that was acknowledged before it began, and shows nothing that such a write supersedes.
	Overlap bool
}

// CheckCausal checks eventual writes under the resolver that keeps siblings, and nothing but such writes, against their
// causal order. A write's id is its value; Covers tells the ids that the context given with it had read, and so
// superseded. MayCover tells ids that a context may have read: an answer to a write gives a context that covers that write
// only where this supersedes nothing unseen.
//
// At the end (Op.Final) a key must have exactly the maxima, in causal order, of the acknowledged writes and of some of the
// unknown ones. During the run no read may show a version beside one that supersedes it. A tombstone has no id that a
// reader could see. Hence deletes supersede like any write, but are not themselves looked for, and a write that may have
// read a tombstone is taken to supersede no more than what else it had read.
func CheckCausal(h *History, options CausalOptions) Result {
	res := newResult("causal")
	keys, groups := byKey(h.Ops(), func(op *Op) bool { return op.Level != kv.LevelStrong })
	for _, key := range keys {
		ops := groups[key]
		res.Keys++
		res.Operations += len(ops)
		c := newCausalKey(ops)
		c.check(&res, key, ops, options)
	}
	return res
}

// bits is a set of writes by number.
type bits []uint64

func newBits(n int) bits      { return make(bits, (n+63)/64) }
func (b bits) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bits) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bits) join(other bits) {
	for i := range b {
		b[i] |= other[i]
	}
}

// causalKey is the causal order of one key's writes.
type causalKey struct {
	writes []*Op // puts and deletes that were or may have been applied, in the order of their calls
	number map[string]int
	// sure[i] are the writes that write i certainly superseded, directly or not; may[i] those that it may have.
	sure, may []bits
}

// newCausalKey numbers the writes and closes "had read" transitively. Contexts come from earlier answers, so that one pass in
// the order of calls is enough; an id that no earlier write has is left out, and CheckValues reports the read that showed it.
func newCausalKey(ops []Op) *causalKey {
	c := &causalKey{number: map[string]int{}}
	for i := range ops {
		if ops[i].MayHaveWritten() {
			c.writes = append(c.writes, &ops[i])
		}
	}
	n := len(c.writes)
	for i, op := range c.writes {
		sure, may := newBits(n), newBits(n)
		for _, id := range op.Covers {
			if j, ok := c.number[id]; ok {
				sure.set(j)
				sure.join(c.sure[j])
				may.join(c.may[j])
			}
		}
		for _, id := range op.MayCover {
			if j, ok := c.number[id]; ok {
				may.set(j)
				may.join(c.may[j])
			}
		}
		may.join(sure)
		c.sure, c.may = append(c.sure, sure), append(c.may, may)
		if op.Kind == kv.OpPut {
			c.number[op.Value] = i
		}
	}
	return c
}

func (c *causalKey) check(res *Result, key string, ops []Op, options CausalOptions) {
	finals := 0
	for i := range ops {
		op := &ops[i]
		if !op.Answered() {
			continue
		}
		seen, ok := c.known(res, key, op)
		if !ok {
			continue
		}
		c.checkBeside(res, key, op, seen)
		switch {
		case op.Final:
			finals++
			c.checkSuperseded(res, key, op, seen, Never)
			c.checkPresent(res, key, op, seen, Never)
		case options.Overlap:
			c.checkSuperseded(res, key, op, seen, op.Call)
			c.checkPresent(res, key, op, seen, op.Call)
		}
	}
	if finals == 0 {
		for _, w := range c.writes {
			if w.Wrote() {
				res.add("never read at the end", key, "nothing is known of what became of an acknowledged write", w)
				return
			}
		}
	}
}

// known returns the numbers of the versions that the read was answered.
func (c *causalKey) known(res *Result, key string, op *Op) (seen []int, ok bool) {
	has := map[int]bool{}
	for _, v := range op.Values() {
		i, ok := c.number[v]
		switch {
		case !ok:
			res.add("extra sibling", key, quote(v)+" comes from no write, or from one that failed", op)
			return nil, false
		case has[i]:
			res.add("sibling twice", key, quote(v)+" is there twice", op, c.writes[i])
			return nil, false
		}
		has[i] = true
		seen = append(seen, i)
	}
	tombstones, deletes := 0, 0
	for _, s := range op.Siblings {
		if s.Deleted {
			tombstones++
		}
	}
	for _, w := range c.writes {
		if w.Kind == kv.OpDelete && w.Call < op.Return {
			deletes++
		}
	}
	if tombstones > deletes {
		res.add("extra sibling", key, fmt.Sprintf("%d deletions are shown, %d were asked for", tombstones, deletes), op)
	}
	return seen, true
}

// checkBeside reports versions that the read shows beside one that supersedes them.
func (c *causalKey) checkBeside(res *Result, key string, op *Op, seen []int) {
	for _, i := range seen {
		for _, j := range seen {
			if c.sure[j].has(i) {
				res.add("superseded sibling", key, quote(c.writes[i].Value)+" is shown beside a version whose writer had read it",
					op, c.writes[i], c.writes[j])
			}
		}
	}
}

// checkSuperseded reports versions that the read shows though a write acknowledged before the time supersedes them.
func (c *causalKey) checkSuperseded(res *Result, key string, op *Op, seen []int, before int64) {
	for _, i := range seen {
		for j, w := range c.writes {
			if w.Wrote() && w.Return < before && c.sure[j].has(i) {
				res.add("superseded sibling", key, quote(c.writes[i].Value)+" is there though an acknowledged write had read it",
					op, c.writes[i], w)
				break
			}
		}
	}
}

// checkPresent reports writes acknowledged before the time that the read neither shows nor shows superseded.
func (c *causalKey) checkPresent(res *Result, key string, op *Op, seen []int, before int64) {
	covered := newBits(len(c.writes))
	for _, i := range seen {
		covered.set(i)
		covered.join(c.may[i])
	}
	for i, w := range c.writes {
		// What a delete may have superseded may be gone with no trace but the tombstone.
		if w.Kind == kv.OpDelete && w.Call < op.Return {
			covered.join(c.may[i])
		}
	}
	for i, w := range c.writes {
		if w.Kind == kv.OpPut && w.Wrote() && w.Return < before && !covered.has(i) {
			res.add("sibling lost", key, quote(w.Value)+" was acknowledged and nothing that is shown supersedes it", op, w)
		}
	}
}
