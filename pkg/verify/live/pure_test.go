package live

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/verify"
)

const metricsText = `# HELP kvstore_transport_dropped_frames_total Frames.
# TYPE kvstore_transport_dropped_frames_total counter
kvstore_transport_dropped_frames_total{class="raft",reason="fault"} 12
kvstore_transport_dropped_frames_total{class="data",reason="fault"} 3
kvstore_transport_dropped_frames_total{class="data",reason="full"} 100
kvstore_transport_dropped_frames_total_other{reason="fault"} 1000
kvstore_transport_links 2
`

func TestMetricsAreSummedByLabel(t *testing.T) {
	for want, labels := range map[float64][]string{15: {`reason="fault"`}, 12: {`reason="fault"`, `class="raft"`}, 115: nil} {
		got, err := sumMetric(metricsText, "kvstore_transport_dropped_frames_total", labels...)
		require.NoError(t, err)
		require.InDelta(t, want, got, 0)
	}
	got, err := sumMetric(metricsText, "kvstore_transport_links")
	require.NoError(t, err)
	require.InDelta(t, 2, got, 0)
	_, err = sumMetric(metricsText, "kvstore_transport_dropped", `reason="fault"`)
	require.ErrorIs(t, err, errNoMetric, "a proof needs the very metric")
	_, err = sumMetric("a{b=\"c\"} x\n", "a")
	require.ErrorContains(t, err, "malformed")
}

func TestRulesInForceMustBeThoseThatWereSet(t *testing.T) {
	id := func(i int) uint64 { return uint64(i + 1) }
	cuts := []Cut{{0, 1}, {1, 0}, {2, 0}}
	rules := cutRules(0, cuts, id)
	require.Equal(t, []rule{
		{Peer: uint64(2), Direction: "out", Cut: true}, {Peer: uint64(2), Direction: "in", Cut: true}, {Peer: uint64(3), Direction: "in", Cut: true},
	}, rules)
	require.Equal(t, []rule{{Peer: uint64(1), Direction: "out", Cut: true}}, cutRules(2, cuts, id))
	require.Empty(t, cutRules(3, cuts, id))

	for answer, want := range map[string]bool{
		`[{"peer":2,"direction":"out","class":"all","cut":true},{"peer":2,"direction":"in","class":"all","cut":true},{"peer":3,"direction":"in","class":"all","cut":true}]`: true,
		`[{"peer":2,"direction":"out","class":"all","cut":true},{"peer":2,"direction":"in","class":"all","cut":true},{"peer":1,"direction":"in","class":"all","cut":true}]`: false,
		`[{"peer":2,"direction":"out","class":"all","cut":true}]`: false,
		`[]`: false,
	} {
		var inForce []rule
		require.NoError(t, json.Unmarshal([]byte(answer), &inForce))
		require.Equal(t, want, covers(inForce, rules), answer)
	}
	require.True(t, covers([]rule{{Clock: "-10m0s"}}, []rule{{Clock: "-10m"}}))
	require.False(t, covers([]rule{{Clock: "10m0s"}}, []rule{{Clock: "-10m"}}))
	require.True(t, covers([]rule{{Peer: "*", Direction: "both", Delay: "50ms"}}, []rule{{Delay: "50ms"}}))
	require.False(t, covers([]rule{{Disk: "low"}}, []rule{{Disk: "full"}}))
}

func TestTheStateOfAProcessIsReadPastItsName(t *testing.T) {
	require.Equal(t, "T", statState("42 (caprock) T 1 42"))
	require.Equal(t, "S", statState("42 (a) R (b) S 1 42"))
	require.Empty(t, statState(""))
}

func TestWhyANodeStoppedIsItsPanicOrItsLastLine(t *testing.T) {
	const life = "time=1 msg=\"node listens\"\n"
	require.Equal(t, "caprock: the disk is full", finalWords(life+"caprock: the disk is full\n"))
	require.Equal(t, "panic: tocommit(9) is out of range", finalWords(life+"panic: tocommit(9) is out of range\n\ngoroutine 1 [running]:\n\ta.go:7 +0x95\n"))
	require.Equal(t, `time=1 msg="node listens"`, finalWords("panic: earlier\n\tb.go:1\n"+life), "an earlier life's panic is over")
	require.Empty(t, finalWords(""))
}

func TestARefusalCountsAsAFullDiskOnlyIfItSaysSo(t *testing.T) {
	require.True(t, refusedForSpace(&answerError{status: 429, body: `{"code":"OVERLOADED","detail":"the disk has little space left"}`}))
	require.False(t, refusedForSpace(&answerError{status: 429, body: `{"code":"OVERLOADED","detail":"too many requests"}`}))
	require.False(t, refusedForSpace(&answerError{status: 503, body: `{"code":"NOT_READY","detail":"no disk"}`}))
}

// What a client of a run is told must end up in the history as what it is: a mistake here hides losses or invents them.
func TestOutcomesOfTheClientKeepTheirMeaning(t *testing.T) {
	put := verify.Task{Request: kv.Request{Op: kv.OpPut, Level: kv.LevelStrong, Key: []byte("k"), Value: []byte("v")}}
	get := verify.Task{Request: kv.Request{Op: kv.OpGet, Level: kv.LevelStrong, Key: []byte("k")}}
	for _, tc := range []struct {
		task verify.Task
		err  error
		want verify.Outcome
	}{
		{put, nil, verify.OutcomeOK},
		{put, kv.Errorf(kv.CodeNotReady, "").WithOutcome(kv.OutcomeNotApplied), verify.OutcomeFail},
		{put, kv.Errorf(kv.CodeDeadlineExceeded, "").WithOutcome(kv.OutcomeUnknown), verify.OutcomeUnknown},
		{put, errors.New("what"), verify.OutcomeUnknown},
		{get, kv.Errorf(kv.CodeDeadlineExceeded, "").WithOutcome(kv.OutcomeUnknown), verify.OutcomeFail},
		{get, kv.Errorf(kv.CodeKeyNotFound, ""), verify.OutcomeOK},
	} {
		h := verify.NewHistory()
		result := client.Result{Value: []byte("v"), Found: true, Version: 7}
		op, _ := verify.Record(t.Context(), h, fixed{response(&result), tc.err}, 0, tc.task)
		require.Equal(t, tc.want, op.Outcome, "%v %v", tc.task.Request.Op, tc.err)
		require.Equal(t, tc.want == verify.OutcomeUnknown, op.Return == verify.Never)
		if tc.err == nil {
			require.EqualValues(t, 7, op.Version)
		}
	}
	siblings := client.Result{Siblings: []client.Sibling{{Value: []byte("a")}, {Deleted: true}}, Context: []byte("c")}
	got := response(&siblings)
	require.Len(t, got.Siblings, 2)
	require.True(t, got.Siblings[1].Deleted)
	require.Equal(t, []byte("c"), got.Context)
}

func TestAClientLeavesANodeThatDoesNotAnswer(t *testing.T) {
	at := turn{}
	at.after(nil, 3)
	at.after(kv.Errorf(kv.CodeVersionMismatch, ""), 3)
	at.after(kv.Errorf(kv.CodeKeyNotFound, ""), 3)
	require.Equal(t, turn{node: 0, made: 3}, at, "these are answers")
	at.after(kv.Errorf(kv.CodeNoLeader, ""), 3)
	require.Equal(t, turn{node: 1}, at)
	for range turnOperations {
		at.after(nil, 3)
	}
	require.Equal(t, turn{node: 2}, at, "every node gets its share")
	at.after(errors.New("what"), 3)
	require.Equal(t, turn{node: 0}, at)
}

func TestLeaderChangesAreLeadershipsBeyondTheFirst(t *testing.T) {
	l := newLeaders()
	require.Zero(t, l.changes())
	l.see([]partition{{0, "n1", 1}, {1, "n2", 1}, {2, "", 5}})
	require.Zero(t, l.changes())
	l.see([]partition{{0, "n1", 1}, {1, "n3", 4}})
	l.see([]partition{{0, "n1", 1}, {1, "n3", 4}, {1, "n2", 1}})
	require.Equal(t, 1, l.changes(), "what an old view repeats is no change")
	l.see([]partition{{0, "n1", 2}})
	require.Equal(t, 2, l.changes(), "the same node elected again is one")
}

func TestAViewThatFailedNeverAgrees(t *testing.T) {
	require.True(t, agree([]view{{text: "a"}, {text: "a"}}))
	require.False(t, agree([]view{{text: "a"}, {text: "b"}}))
	require.False(t, agree([]view{{text: "a", failed: true}, {text: "a", failed: true}}))
	a := kv.Response{Siblings: []kv.Sibling{{Value: []byte("x")}, {Value: []byte("y")}}}
	b := kv.Response{Siblings: []kv.Sibling{{Value: []byte("y")}, {Value: []byte("x")}}}
	require.Equal(t, answerText(&a), answerText(&b), "siblings have no order")
	require.NotEqual(t, answerText(&kv.Response{}), answerText(&kv.Response{Found: true}))
}

func TestAnyAnomalyOrUndecidedKeyMakesARunNotValid(t *testing.T) {
	ok := verify.Report{Valid: true, Operations: 3, Unknown: 1}
	r := Report{}
	r.judge(ok, nil)
	require.True(t, r.Valid)
	require.NotNil(t, r.Anomalies)
	require.Equal(t, 3, r.Operations)

	r = Report{}
	r.judge(ok, []verify.Anomaly{anomaly("fault had no effect", "x")})
	require.False(t, r.Valid)

	r = Report{}
	r.judge(verify.Report{Results: []verify.Result{{Checker: "linearizable", Undecided: 2}}}, nil)
	require.False(t, r.Valid)
	require.Len(t, r.Anomalies, 1, "what makes it invalid is named")
}

func TestAFaultThatFailedIsNotCounted(t *testing.T) {
	r := Report{ByFault: map[string]int{}}
	r.record(Event{Fault: Kill})
	r.record(Event{Fault: Kill, Error: "x"})
	require.Equal(t, 1, r.Faults)
	require.Equal(t, map[string]int{Kill: 1}, r.ByFault)
	require.Len(t, r.Timeline, 2)
}

func TestNamespacesAreWiredToOneBridge(t *testing.T) {
	n := &netns{nodes: 2, pid: 77, subnet: "10.1.2", ip: "/sbin/ip", ipt: "/sbin/iptables"}
	var lines []string
	for _, args := range n.openCommands() {
		lines = append(lines, strings.Join(args, " "))
	}
	require.Equal(t, []string{
		"netns add caprock-verify-77-hub",
		"-n caprock-verify-77-hub link add br0 type bridge",
		"-n caprock-verify-77-hub link set br0 up",
		"link add cv77 type veth peer name uplink netns caprock-verify-77-hub",
		"-n caprock-verify-77-hub link set uplink master br0 up",
		"addr add 10.1.2.1/24 dev cv77",
		"link set cv77 up",
		"netns add caprock-verify-77-n1",
		"-n caprock-verify-77-n1 link set lo up",
		"-n caprock-verify-77-n1 link add eth0 type veth peer name n1 netns caprock-verify-77-hub",
		"-n caprock-verify-77-hub link set n1 master br0 up",
		"-n caprock-verify-77-n1 addr add 10.1.2.2/24 dev eth0",
		"-n caprock-verify-77-n1 link set eth0 up",
	}, lines[:13])
	require.Len(t, lines, 19)
	require.LessOrEqual(t, len((&netns{pid: math.MaxInt32}).hostInterface()), 15, "the kernel's limit for names of interfaces")

	cmd := exec.Command("/bin/caprock", "start", "--name", "n1")
	n.wrap(0, cmd)
	require.Equal(t, "/sbin/ip", cmd.Path)
	require.Equal(t, []string{"/sbin/ip", "netns", "exec", "caprock-verify-77-n1", "/bin/caprock", "start", "--name", "n1"}, cmd.Args)
	require.Equal(t, "netns exec caprock-verify-77-n2 /sbin/iptables -w -A INPUT -s 10.1.2.2 -j DROP",
		strings.Join(n.iptables(1, "-A", "-s", n.address(0), "-j", "DROP"), " "), "dropped where it arrives")
}

func TestDroppedPacketsAreThoseOfDropRules(t *testing.T) {
	packets, rules := droppedPackets(`Chain INPUT (policy ACCEPT 0 packets, 0 bytes)
    pkts      bytes target     prot opt in     out     source               destination
      17     1020 DROP       0    --  *      *       10.1.1.1             0.0.0.0/0
       3      180 DROP       0    --  *      *       10.1.1.2             0.0.0.0/0
      99     9999 ACCEPT     0    --  *      *       0.0.0.0/0            0.0.0.0/0
`)
	require.InDelta(t, 20, packets, 0)
	require.Equal(t, 2, rules)
}

func TestASubnetIsChosenThatTheMachineDoesNotUse(t *testing.T) {
	_, whole, err := net.ParseCIDR("10.0.0.0/9")
	require.NoError(t, err)
	_, one, err := net.ParseCIDR("10.128.0.0/24")
	require.NoError(t, err)
	subnet, err := freeSubnet([]net.Addr{whole, one}, 0)
	require.NoError(t, err)
	require.Equal(t, "10.128.1", subnet)
	_, everything, err := net.ParseCIDR("10.0.0.0/8")
	require.NoError(t, err)
	_, err = freeSubnet([]net.Addr{everything}, 5)
	require.Error(t, err)
}

func TestListedFindsWholeNames(t *testing.T) {
	require.True(t, listed("a-n1 (id: 1)\na-n10 (id: 2)\n", "a-n1"))
	require.False(t, listed("a-n10 (id: 2)\n", "a-n1"))
}

func TestAwaitReturnsTheLastReason(t *testing.T) {
	tries := 0
	require.NoError(t, await(t.Context(), time.Second, func(context.Context) error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	}))
	require.ErrorContains(t, await(t.Context(), 120*time.Millisecond, func(context.Context) error { return errors.New("never") }), "never")
}

// fixed is a target with one answer.
type fixed struct {
	res kv.Response
	err error
}

func (f fixed) Do(context.Context, int, *kv.Request) (kv.Response, error) { return f.res, f.err }
