package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The script: one of three nodes is cut off from the others for a while, messages and gossip alike.
const (
	availableBefore = 10 * time.Second
	availableDuring = 30 * time.Second
	availableAfter  = 30 * time.Second
	// probeEvery is how often each kind of operation is tried, on one of so many keys in turn; probeTimeout is how long a
	// client waits. The keys lie in all partitions, some of which lose their leader.
	probeEvery   = 25 * time.Millisecond
	probeKeys    = 8
	probeTimeout = time.Second
)

// availablePhases are what the table tells apart.
func availablePhases() []string { return []string{"before", "during", "after"} }

// probe is a client of one kind of operation at one side of the partition.
type probe struct {
	title    string
	level    kv.Level
	quorum   kv.Quorum
	write    bool
	majority bool

	answers []answered
}

// answered is when an operation began, when it was answered, and whether that was a success.
type answered struct {
	key      int
	from, to time.Duration
	ok       bool
}

// probes are the rows of the table, each at both sides.
func probes() (out []*probe) {
	for _, row := range []probe{
		{title: "strong", level: kv.LevelStrong},
		{title: "eventual, r=2 / w=2", level: kv.LevelEventual, quorum: kv.Quorum{R: 2, W: 2}},
		{title: "eventual, r=1 / w=1", level: kv.LevelEventual, quorum: kv.Quorum{R: 1, W: 1}},
		{title: "local", level: kv.LevelLocal},
	} {
		for _, row.write = range []bool{false, true} {
			for _, row.majority = range []bool{false, true} {
				p := row
				out = append(out, &p)
			}
		}
	}
	return out
}

// run makes operations until stop is closed. Each begins on time, however long earlier ones take: a client that waits for
// an answer would make fewer of those that fail.
func (p *probe) run(ctx context.Context, c *Cluster, at int, start time.Time, stop <-chan struct{}) {
	var under sync.WaitGroup
	var mu sync.Mutex // guards p.answers
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			under.Wait()
			return
		case <-tick.C:
		}
		under.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			r := &kv.Request{Op: kv.OpGet, Level: p.level, Key: fmt.Appendf(nil, "available-%d", i%probeKeys)}
			if p.write {
				r.Op, r.Value, r.Quorum.W = kv.OpPut, []byte("v"), p.quorum.W
			} else {
				r.Quorum.R = p.quorum.R
			}
			from := time.Since(start)
			_, err := c.Execute(ctx, at, r)
			a := answered{i % probeKeys, from, time.Since(start), err == nil}
			mu.Lock()
			defer mu.Unlock()
			p.answers = append(p.answers, a)
		})
	}
}

// served is what became of the operations of one phase.
type served struct {
	made, ok int
	// gap is the longest time within the phase, from its beginning and up to its end, in which some key's operations had no
	// success.
	gap time.Duration
}

func (s served) share() float64 { return 100 * float64(s.ok) / float64(max(s.made, 1)) }

// in returns what became of the operations that began in a phase, but for those that could wait for the next one.
func (p *probe) in(from, to time.Duration) (out served) {
	var moments [probeKeys][]time.Duration
	for _, a := range p.answers {
		if a.ok && a.to >= from && a.to < to {
			moments[a.key] = append(moments[a.key], a.to)
		}
		if a.from < from || a.from >= to-probeTimeout {
			continue
		}
		if out.made++; a.ok {
			out.ok++
		}
	}
	for key := range moments {
		out.gap = max(out.gap, longestGap(from, to, moments[key]))
	}
	return out
}

// cell is a field of the table: what several runs came to.
func cell(runs []served) string {
	var sum served
	for _, s := range runs {
		sum.made, sum.ok, sum.gap = sum.made+s.made, sum.ok+s.ok, max(sum.gap, s.gap)
	}
	if sum.ok == 0 {
		return "0 %, –"
	}
	share := fmt.Sprintf("%.1f %%", sum.share())
	if sum.ok == sum.made {
		share = "100 %"
	}
	return fmt.Sprintf("%s, %.2f s", share, sum.gap.Seconds())
}

// availability is a table in the making: by row, by side, by phase, one entry a run.
type availability map[string]map[bool]map[string][]served

func (a availability) add(p *probe, phase string, s served) {
	name := p.title + " | get"
	if p.write {
		name = p.title + " | put"
	}
	if a[name] == nil {
		a[name] = map[bool]map[string][]served{false: {}, true: {}}
	}
	a[name][p.majority][phase] = append(a[name][p.majority][phase], s)
}

// String is the table as docs/consistency.md has it.
func (a availability) String() string {
	var b strings.Builder
	b.WriteString("| level | | alone, before | alone, during | alone, after | majority, before | majority, during | majority, after |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|\n")
	seen := map[string]bool{}
	for _, p := range probes() {
		for _, op := range []string{"get", "put"} {
			name := p.title + " | " + op
			if seen[name] {
				continue
			}
			seen[name] = true
			fmt.Fprintf(&b, "| %s ", name)
			for _, majority := range []bool{false, true} {
				for _, phase := range availablePhases() {
					fmt.Fprintf(&b, "| %s ", cell(a[name][majority][phase]))
				}
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// cutOff runs the script once: the node that the seed names is alone for a while.
func cutOff(ctx context.Context, c *Cluster, into availability) []*probe {
	alone := int(c.opts.Seed) % 3
	all, stop := probes(), make(chan struct{})
	var clients sync.WaitGroup
	start := time.Now()
	for i, p := range all {
		at := alone
		if p.majority {
			at = others(alone)[i/2%2]
		}
		clients.Go(func() { p.run(ctx, c, at, start, stop) })
	}
	time.Sleep(availableBefore)
	c.Cut([]int{alone}, others(alone))
	time.Sleep(availableDuring)
	c.Heal()
	time.Sleep(availableAfter)
	close(stop)
	clients.Wait()
	from := time.Duration(0)
	for i, length := range []time.Duration{availableBefore, availableDuring, availableAfter} {
		for _, p := range all {
			into.add(p, availablePhases()[i], p.in(from, from+length))
		}
		from += length
	}
	return all
}

// What each level goes on doing while one of three nodes is cut off, at either side. It prints the table of
// docs/consistency.md: make availability.
func TestAvailabilityOfEachLevelOverAPartition(t *testing.T) {
	table := availability{}
	for _, seed := range seeds()[:min(6, max(1, len(seeds())/4))] {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			inBubble(t, seed, 3, func(t *testing.T, ctx context.Context, c *Cluster) {
				synctest.Wait()
				for _, p := range cutOff(ctx, c, table) {
					requireServed(t, p)
				}
				waitReady(t, ctx, c, Convergence)
				requireEqualReplicas(t, ctx, c)
			})
		})
	}
	t.Logf("\n%s", table)
}

// requireServed checks what each level promises.
func requireServed(t *testing.T, p *probe) {
	t.Helper()
	// The probes' own pace, and what a replica that falls silent may cost.
	const slack = probeKeys*probeEvery + 250*time.Millisecond
	name := fmt.Sprintf("%s, write %v, majority %v", p.title, p.write, p.majority)
	before := p.in(0, availableBefore)
	during := p.in(availableBefore, availableBefore+availableDuring)
	after := p.in(availableBefore+availableDuring, availableBefore+availableDuring+availableAfter)
	require.Equal(t, before.made, before.ok, "%s: before", name)
	single := p.level == kv.LevelLocal || p.quorum.W == 1
	switch {
	case p.level == kv.LevelStrong && p.majority:
		require.Less(t, during.gap, 5*time.Second, "%s: new leaders are elected", name)
		require.Greater(t, during.share(), 85.0, "%s: during", name)
	case single:
		require.Equal(t, during.made, during.ok, "%s: during", name)
		require.Less(t, during.gap, slack, "%s: during", name)
	case p.majority:
		// A write of a key that several nodes write may have been handed to the node that is alone now: its outcome is unknown.
		require.Greater(t, during.share(), 99.0, "%s: during", name)
		require.Less(t, during.gap, slack, "%s: during", name)
	default:
		require.LessOrEqual(t, during.share(), 5.0, "%s: the node that is alone has no quorum", name)
	}
	if single || p.majority && p.level == kv.LevelEventual {
		require.Equal(t, after.made, after.ok, "%s: after", name)
		require.Less(t, after.gap, slack, "%s: after", name)
	}
	require.Less(t, after.gap, 20*time.Second, "%s: after", name)
}

// longestGap returns the longest time without any of the moments.
func longestGap(from, to time.Duration, moments []time.Duration) (gap time.Duration) {
	slices.Sort(moments)
	for _, m := range append(moments, to) {
		gap = max(gap, m-from)
		from = m
	}
	return gap
}
