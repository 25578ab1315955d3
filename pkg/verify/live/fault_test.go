package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/verify"
)

// fakeNode answers the admin routes as a node does on which faults may or may not have an effect.
type fakeNode struct {
	mu     sync.Mutex // guards the fields below
	rules  json.RawMessage
	deaf   bool          // takes faults, and forgets them
	put    int           // status of a write
	detail string        // of a refused write
	ahead  time.Duration // of a write's stamp
	// policies are set, and never come into force.
	policies []string
	took     time.Duration // by a write
}

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	put, detail, ahead, took := f.put, f.detail, f.ahead, f.took
	switch {
	case r.URL.Path == "/admin/faults" && r.Method == http.MethodPost && !f.deaf:
		f.rules, _ = io.ReadAll(r.Body)
	case r.URL.Path == "/admin/faults" && r.Method == http.MethodDelete:
		f.rules = nil
	case strings.HasPrefix(r.URL.Path, "/admin/policies/") && r.Method == http.MethodPut:
		f.policies = append(f.policies, r.URL.Path)
	case strings.HasPrefix(r.URL.Path, "/admin/policies/") && r.Method == http.MethodDelete:
		f.policies = slices.DeleteFunc(f.policies, func(p string) bool { return p == r.URL.Path })
	}
	rules := f.rules
	f.mu.Unlock()
	switch {
	case r.URL.Path == "/admin/faults":
		if rules == nil {
			rules = json.RawMessage("[]")
		}
		_, _ = w.Write(rules)
	case r.URL.Path == "/admin/status", r.URL.Path == "/admin/policies":
		_, _ = w.Write([]byte("{}"))
	case r.Method == http.MethodPut:
		time.Sleep(took)
		w.Header().Set("Caprock-Coordinator", "n1")
		w.WriteHeader(put)
		_ = json.NewEncoder(w).Encode(map[string]any{"timestamp": time.Now().Add(ahead), "detail": detail})
	}
}

// newFakeFleet returns a fleet of one node, n1, whose process sleeps.
func newFakeFleet(t *testing.T, node *fakeNode) *fleet {
	t.Helper()
	if node.put == 0 {
		node.put = http.StatusOK
	}
	server := httptest.NewServer(node)
	t.Cleanup(server.Close)
	f := &fleet{net: &fakeNetwork{}, deps: Deps{
		Command: func(Spec) *exec.Cmd { return exec.Command("sleep", "60") },
	}.withDefaults()}
	f.nodes = append(f.nodes, newTestNode(t, server.URL))
	require.NoError(t, f.start(0))
	t.Cleanup(func() { f.nodes[0].proc.end() })
	return f
}

func newTestNode(t *testing.T, url string) *node {
	return &node{name: "n1", id: 1, admin: newAdmin(url), log: filepath.Join(t.TempDir(), "log")}
}

// fakeNetwork counts what it is told to have dropped.
type fakeNetwork struct{ drops, each float64 }

func (*fakeNetwork) open(context.Context) error                 { return nil }
func (*fakeNetwork) wrap(int, *exec.Cmd)                        {}
func (n *fakeNetwork) cut(context.Context, []Cut) error         { n.drops += n.each; return nil }
func (*fakeNetwork) heal(context.Context) error                 { return nil }
func (n *fakeNetwork) dropped(context.Context) (float64, error) { return n.drops, nil }
func (*fakeNetwork) close() error                               { return nil }

// carryOut does with a fault what a run does.
func carryOut(t *testing.T, f *fleet, s Step) (string, error) {
	t.Helper()
	fault := newFault(f, s)
	err := fault.begin(t.Context())
	if err == nil {
		err = fault.hold(t.Context(), 20*time.Millisecond)
	}
	effect, endErr := fault.end(t.Context())
	if err != nil {
		return effect, err
	}
	return effect, endErr
}

func TestAFaultThatDoesNothingIsNoticed(t *testing.T) {
	for name, tc := range map[string]struct {
		node *fakeNode
		step Step
		want string
	}{
		"a partition that drops nothing":         {&fakeNode{}, Step{Fault: PartitionHalves, Nodes: []int{0}}, "dropped nothing"},
		"a pause that leaves the node answering": {&fakeNode{}, Step{Fault: Pause, Nodes: []int{0}}, "answers although it is stopped"},
		"rules that are not in force":            {&fakeNode{deaf: true}, Step{Fault: Clock, Nodes: []int{0}, Skew: time.Minute}, "in force"},
		"a clock that shows the right time":      {&fakeNode{}, Step{Fault: Clock, Nodes: []int{0}, Skew: time.Minute}, "stamps a write"},
		"a slow link that is not":                {&fakeNode{}, Step{Fault: Slow, Nodes: []int{0}, Delay: 50 * time.Millisecond}, "a write took"},
		"a disk that is not volatile":            {&fakeNode{deaf: true}, Step{Fault: Power, Nodes: []int{0}}, "in force"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeFleet(t, tc.node)
			_, err := carryOut(t, f, tc.step)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestADiskFaultMustBeSeenAsWhatItIs(t *testing.T) {
	f := newFakeFleet(t, &fakeNode{})
	d := &diskFault{fleet: f, disk: diskLow}
	_, err := d.effect(t.Context(), f.nodes[0])
	require.ErrorContains(t, err, "it takes writes")

	f = newFakeFleet(t, &fakeNode{put: http.StatusTooManyRequests, detail: "too many requests at once"})
	_, err = d.effect(t.Context(), f.nodes[0])
	require.ErrorContains(t, err, "failed otherwise")

	f = newFakeFleet(t, &fakeNode{put: http.StatusTooManyRequests, detail: "the disk is nearly full"})
	effect, err := d.effect(t.Context(), f.nodes[0])
	require.NoError(t, err)
	require.Contains(t, effect, "refuses writes")
	_, err = (&diskFault{fleet: f, disk: diskError}).effect(t.Context(), f.nodes[0])
	require.Error(t, err, "a disk error must stop the node")

	require.NoError(t, f.nodes[0].proc.kill())
	require.True(t, f.nodes[0].proc.awaitExit(exitTimeout))
	_, err = (&diskFault{fleet: f, disk: diskError}).effect(t.Context(), f.nodes[0])
	require.ErrorContains(t, err, "ended otherwise", "a signal is not the node's own decision")
}

func TestFaultsThatWorkSayWhatTheyDid(t *testing.T) {
	f := newFakeFleet(t, &fakeNode{ahead: time.Minute, took: 60 * time.Millisecond})
	f.net = &fakeNetwork{each: 5}
	for _, tc := range []struct {
		step Step
		want string
	}{
		{Step{Fault: PartitionHalves, Nodes: []int{0}}, "5 frames dropped"},
		{Step{Fault: PartitionFlapping, Nodes: []int{0}, Toggle: time.Millisecond}, "times; "},
		{Step{Fault: Clock, Nodes: []int{0}, Skew: time.Minute}, "n1 set wrong by 1m0s, a write is stamped 1m0s ahead"},
		{Step{Fault: Slow, Nodes: []int{0}, Delay: 50 * time.Millisecond}, "n1 delayed by 50ms, a write took"},
		{Step{Fault: Power, Nodes: []int{0}}, "volatile until then"},
		{Step{Fault: Kill, Nodes: []int{0}}, "killed by SIGKILL; ready again"},
	} {
		before := f.nodes[0].proc
		effect, err := carryOut(t, f, tc.step)
		require.NoError(t, err, tc.step.Fault)
		require.Contains(t, effect, tc.want)
		if tc.step.Fault == Power || tc.step.Fault == Kill {
			require.True(t, before.killedBy(syscall.SIGKILL))
			require.False(t, f.nodes[0].proc.hasExited(), "started again")
		}
	}
	f.noteDeaths()
	require.Empty(t, f.deaths, "what a fault ends is no news")
}

func TestAProcessThatDiesByItselfIsNoted(t *testing.T) {
	f := newFakeFleet(t, &fakeNode{})
	require.NoError(t, f.nodes[0].proc.signal(syscall.SIGTERM))
	require.True(t, f.nodes[0].proc.awaitExit(exitTimeout))
	require.NoError(t, f.mend(t.Context()))
	require.Len(t, f.deaths, 1)
	require.Contains(t, f.deaths[0], "n1 (pid")
	require.False(t, f.nodes[0].proc.hasExited(), "the run goes on with a new life")
	require.NoError(t, f.mend(t.Context()))
	require.Len(t, f.deaths, 1, "each death once")
}

func TestAPausedProcessIsEndedLikeAnyOther(t *testing.T) {
	f := newFakeFleet(t, &fakeNode{})
	p := f.nodes[0].proc
	require.NoError(t, p.signal(sigStop))
	require.NoError(t, f.stop())
	require.True(t, p.hasExited())
}

// dies has the fleet's node end with the exit code after it wrote the line, and come back as a process that sleeps.
func dies(t *testing.T, f *fleet, line string, code int) {
	t.Helper()
	n := f.nodes[0]
	n.proc.end()
	lasting := f.deps.Command
	f.deps.Command = func(Spec) *exec.Cmd { return exec.Command("sh", "-c", fmt.Sprintf("echo %q; exit %d", line, code)) }
	require.NoError(t, f.start(0))
	require.True(t, n.proc.awaitExit(exitTimeout))
	f.deps.Command = lasting
}

func TestAPanicIsNotWhatABrokenDiskIsMeantToDo(t *testing.T) {
	for _, line := range []string{"panic: boom", "fatal error: all goroutines are asleep"} {
		for _, fault := range []string{DiskFull, DiskError} {
			f := newFakeFleet(t, &fakeNode{})
			dies(t, f, line, 2)
			_, err := carryOut(t, f, Step{Fault: fault, Nodes: []int{0}})
			require.ErrorIs(t, err, errPanicked)
			require.ErrorContains(t, err, line)
			require.False(t, f.nodes[0].proc.hasExited(), "started again")
		}
	}
	f := newFakeFleet(t, &fakeNode{})
	dies(t, f, "caprock: the disk is broken", 1)
	effect, err := carryOut(t, f, Step{Fault: DiskError, Nodes: []int{0}})
	require.NoError(t, err)
	require.Contains(t, effect, "stopped by itself with exit code 1")
}

func TestAPanicUnderADiskFaultIsCalledOne(t *testing.T) {
	f := newFakeFleet(t, &fakeNode{})
	dies(t, f, "panic: boom", 2)
	r := &run{fleet: f, deps: f.deps, history: verify.NewHistory(), report: Report{ByFault: map[string]int{}}}
	r.step(t.Context(), Step{Fault: DiskError, Nodes: []int{0}})
	require.Len(t, r.own, 1)
	require.Equal(t, nodePanicked, r.own[0].Kind)
}

// A disk fault lets its victims end; once the disk is mended, an end is news again.
func TestANodeThatEndsAfterItsDiskWasMendedIsNoted(t *testing.T) {
	fake := &fakeNode{put: http.StatusTooManyRequests, detail: "the disk is nearly full"}
	f := newFakeFleet(t, fake)
	n, d := f.nodes[0], &diskFault{fleet: f, nodes: []int{0}, disk: diskFull}
	require.NoError(t, d.begin(t.Context()))
	require.True(t, n.proc.expected.Load())
	fake.mu.Lock()
	fake.put = http.StatusOK
	fake.mu.Unlock()
	_, err := d.end(t.Context())
	require.NoError(t, err)
	require.NoError(t, n.proc.signal(syscall.SIGTERM))
	require.True(t, n.proc.awaitExit(exitTimeout))
	f.noteDeaths()
	require.Len(t, f.deaths, 1)
}

func TestAnAttachedClusterIsLeftWithoutPoliciesThatCannotBeSet(t *testing.T) {
	fake := &fakeNode{}
	f := newFakeFleet(t, fake)
	cfg := DefaultConfig()
	cfg.Workload, cfg.Endpoints = verify.WorkloadCausal, []string{f.nodes[0].admin.base}
	r := &run{cfg: cfg, deps: f.deps, fleet: f}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, r.prepare(ctx), "is not in force")
	fake.mu.Lock()
	defer fake.mu.Unlock()
	require.Empty(t, fake.policies)
}

func TestANodeThatServesWithAnEmptyDiskIsNoticed(t *testing.T) {
	for said, want := range map[string]string{
		"caprock: node ids are never reused": "",
		"caprock: no such file":              "did not refuse",
	} {
		f := newFakeFleet(t, &fakeNode{})
		f.nodes[0].spec.Dir = t.TempDir()
		f.deps.Command = func(Spec) *exec.Cmd { return exec.Command("sh", "-c", fmt.Sprintf("echo %q; exit 1", said)) }
		effect, err := carryOut(t, f, Step{Fault: Wipe, Nodes: []int{0}})
		require.True(t, f.nodes[0].gone)
		require.NoDirExists(t, f.nodes[0].spec.Dir)
		require.Empty(t, f.present())
		f.noteDeaths()
		require.Empty(t, f.deaths)
		if want != "" {
			require.ErrorContains(t, err, want)
			continue
		}
		require.NoError(t, err)
		require.Contains(t, effect, said)
	}
}
