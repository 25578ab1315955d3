package verify

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// bug is what a fake cluster does wrong.
type bug string

const (
	noBug           bug = ""
	staleRead       bug = "a strong read answers the state before the last write"
	lostWrite       bug = "a write is acknowledged and dropped"
	failedApplied   bug = "a write that is said to have failed is applied"
	appliedTwice    bug = "an unknown write is applied, and later again"
	conditionFree   bug = "a condition is not looked at"
	deleteUndone    bug = "a deleted value comes back"
	contextIgnored  bug = "a context supersedes nothing"
	contextTooMuch  bug = "a context supersedes everything the coordinator holds"
	oldestWins      bug = "of two eventual versions the older one wins"
	thinReplication bug = "an eventual write is acknowledged by one replica and sent to no other"
	halfBatch       bug = "a batch whose last condition misses is applied in part"
	tornBatch       bug = "a batch becomes visible key by key"
	expiredRead     bug = "a value that has expired is read"
	expiredEarly    bug = "a value that expires vanishes early"
	removedLate     bug = "the removal of an expired value removes what has replaced it"
	mixedUp         bug = "a read answers another key's value"
	staleBounded    bug = "a bounded read answers the state before the last write as if it were fresh"
)

// fakeVersion is a version of a key in the eventual lane, with all that it supersedes by name: the dumb form of causality.
type fakeVersion struct {
	id, stamp int
	value     string
	deleted   bool
	below     map[int]bool
}

// fakeRow is a key in the strong lane.
type fakeRow struct {
	exists  bool
	value   string
	version uint64
	expiry  time.Time // zero: never
}

const fakeReplicas = 3

// fakeCluster is a store of both lanes that keeps its promises exactly, except for one bug now and then. Requests take time before
// and after they take effect, fail, and get lost on either way.
type fakeCluster struct {
	bug      bug
	siblings bool // keeps siblings; otherwise the last writer wins

	// mu guards the fields below.
	mu       sync.Mutex
	rand     *rand.Rand
	clock    int
	rows     map[string]fakeRow
	before   map[string]fakeRow // the state before the last write
	replicas [fakeReplicas]map[string][]fakeVersion
	calm     bool // no faults
	settles  bool // eventual writes are seen by strong operations, too
	planted  int  // how often the bug was at work
	late     sync.WaitGroup
}

func newFakeCluster(seed uint64, b bug, siblings bool) *fakeCluster {
	f := &fakeCluster{
		bug: b, siblings: siblings, rand: rand.New(rand.NewPCG(seed, 1)), rows: map[string]fakeRow{}, before: map[string]fakeRow{},
	}
	for i := range f.replicas {
		f.replicas[i] = map[string][]fakeVersion{}
	}
	return f
}

// plan is what happens to one request, drawn beforehand.
type plan struct {
	before, after time.Duration
	refused       bool // before it takes effect
	lost          bool // the answer
	late          time.Duration
	buggy         bool
}

func (f *fakeCluster) plan() plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	ms := func(n int) time.Duration { return time.Duration(f.rand.IntN(n)) * time.Millisecond }
	p := plan{before: ms(8), after: ms(8)}
	if f.calm {
		return p
	}
	p.refused, p.lost, p.buggy = f.rand.IntN(20) == 0, f.rand.IntN(25) == 0, f.rand.IntN(15) == 0
	if p.lost && f.rand.IntN(2) == 0 {
		p.late = ms(3000)
	}
	return p
}

// Do implements Target.
func (f *fakeCluster) Do(ctx context.Context, _ int, r *kv.Request) (kv.Response, error) {
	p := f.plan()
	time.Sleep(p.before)
	refusal := kv.Errorf(kv.CodeOverloaded, "full")
	if p.refused {
		if f.bug == failedApplied && p.buggy && r.Op.IsWrite() {
			f.apply(r, plan{})
		}
		return kv.Response{}, refusal
	}
	if !p.lost {
		res, err := f.apply(r, p)
		time.Sleep(p.after)
		return res, err
	}
	f.late.Go(func() {
		time.Sleep(p.late)
		if p.late%2 == 0 {
			f.apply(r, plan{})
			if f.bug == appliedTwice && r.Op == kv.OpPut {
				time.Sleep(200 * time.Millisecond)
				f.plant()
				f.apply(r, plan{})
			}
		}
	})
	<-ctx.Done()
	return kv.Response{}, kv.Errorf(kv.CodeDeadlineExceeded, "late").WithOutcome(kv.OutcomeUnknown)
}

func (f *fakeCluster) plant() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planted++
}

// isBuggy reports whether the bug is at work in this request.
func (f *fakeCluster) isBuggy(p plan, b bug) bool {
	if f.bug != b || !p.buggy {
		return false
	}
	f.planted++
	return true
}

func (f *fakeCluster) apply(r *kv.Request, p plan) (kv.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case r.Op == kv.OpGet && f.isBuggy(p, mixedUp):
		for _, row := range f.rows {
			return kv.Response{Found: true, Value: []byte(row.value), Version: row.version}, nil
		}
	case r.Level == kv.LevelStrong:
		return f.strong(r, p)
	case r.Level == kv.LevelBounded:
		if f.isBuggy(p, staleBounded) {
			if row := f.before[string(r.Key)]; row.exists {
				return kv.Response{Found: true, Value: []byte(row.value), Version: row.version}, nil
			}
			return kv.Response{}, nil
		}
		return f.strongRead(string(r.Key), plan{}), nil
	case r.Op == kv.OpGet:
		return f.eventualRead(r)
	}
	if f.settles {
		f.clock++
		f.write(&kv.BatchItem{Op: r.Op, Key: r.Key, Value: r.Value}, uint64(f.clock), p)
	}
	return f.eventualWrite(r, p), nil
}

// pick draws different replicas.
func (f *fakeCluster) pick(n int) []int { return f.rand.Perm(fakeReplicas)[:n] }

// fakeMerge keeps of the versions those that no other supersedes; where siblings are not kept, the last one of them.
func (f *fakeCluster) fakeMerge(versions []fakeVersion) []fakeVersion {
	var out []fakeVersion
	for _, v := range versions {
		beaten := slices.ContainsFunc(versions, func(o fakeVersion) bool { return o.below[v.id] }) ||
			slices.ContainsFunc(out, func(o fakeVersion) bool { return o.id == v.id })
		if !beaten {
			out = append(out, v)
		}
	}
	if f.siblings || len(out) < 2 {
		return out
	}
	winner := out[0]
	for _, v := range out {
		if v.stamp > winner.stamp {
			winner = v
		}
	}
	return []fakeVersion{winner}
}

func (f *fakeCluster) held(key string, replicas ...int) []fakeVersion {
	var all []fakeVersion
	for _, i := range replicas {
		all = append(all, f.replicas[i][key]...)
	}
	return f.fakeMerge(all)
}

// token is a context: the ids of all that an answer covers.
func token(versions ...fakeVersion) []byte {
	ids := []int{0}
	for _, v := range versions {
		ids = append(ids, v.id)
		for id := range v.below {
			ids = append(ids, id)
		}
	}
	b, err := json.Marshal(ids)
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fakeCluster) eventualRead(r *kv.Request) (kv.Response, error) {
	versions := f.held(string(r.Key), f.pick(2)...)
	res := kv.Response{Level: r.Level, Context: token(versions...)}
	live := slices.ContainsFunc(versions, func(v fakeVersion) bool { return !v.deleted })
	switch {
	case !live:
		return kv.Response{Context: res.Context}, nil
	case len(versions) == 1:
		res.Found, res.Value = true, []byte(versions[0].value)
	default:
		res.Found = true
		for _, v := range versions {
			res.Siblings = append(res.Siblings, kv.Sibling{Value: []byte(v.value), Deleted: v.deleted})
		}
	}
	return res, nil
}

func (f *fakeCluster) eventualWrite(r *kv.Request, p plan) kv.Response {
	key := string(r.Key)
	at := f.pick(2)
	f.clock++
	v := fakeVersion{id: f.clock, stamp: f.clock, value: string(r.Value), deleted: r.Op == kv.OpDelete, below: map[int]bool{}}
	var ids []int
	if len(r.Context) > 0 {
		if err := json.Unmarshal(r.Context, &ids); err != nil {
			panic(err)
		}
	}
	if f.isBuggy(p, contextIgnored) {
		ids = nil
	}
	for _, id := range ids {
		v.below[id] = true
	}
	if !f.siblings || f.isBuggy(p, contextTooMuch) {
		for _, h := range f.held(key, at...) {
			v.below[h.id] = true
			for id := range h.below {
				v.below[id] = true
			}
		}
	}
	if f.isBuggy(p, oldestWins) {
		v.stamp, v.below = -f.clock, map[int]bool{}
	}
	res := kv.Response{Level: r.Level, Outcome: kv.OutcomeApplied, Acks: len(at), Context: token(v)}
	if len(ids) > 1 && f.rand.IntN(2) == 0 && f.siblings {
		res.Context = r.Context // as if covering the write itself had covered something unseen
	}
	switch {
	case f.isBuggy(p, lostWrite), v.deleted && f.isBuggy(p, deleteUndone):
		return res
	case f.isBuggy(p, thinReplication):
		at = at[:0]
	}
	for _, i := range at {
		f.replicas[i][key] = f.fakeMerge(append(slices.Clone(f.replicas[i][key]), v))
	}
	return res
}

// settle ends the faults, waits for what is under way, and brings the replicas to the same state.
func (f *fakeCluster) settle() {
	f.late.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calm = true
	keys := map[string]bool{}
	for _, rows := range f.replicas {
		for key := range rows {
			keys[key] = true
		}
	}
	for key := range keys {
		merged := f.held(key, 0, 1, 2)
		for i := range f.replicas {
			f.replicas[i][key] = merged
		}
	}
}
