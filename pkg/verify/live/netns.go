package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// netnsCommandTimeout bounds one call of ip or iptables.
const netnsCommandTimeout = 20 * time.Second

// netns is a network of namespaces: one for each node, and a hub with a bridge that all of them are plugged into. One more
// cable leads from the bridge to the namespace of this process, for the clients:
//
//	n1: eth0 10.x.y.2 ──┐
//	n2: eth0 10.x.y.3 ──┼── hub: br0 ── up ──── cv<pid> 10.x.y.1 : this process
//	n3: eth0 10.x.y.4 ──┘
//
// That interface is all that the machine's own namespace sees. Removing the namespaces removes every cable.
type netns struct {
	nodes    int
	pid      int
	subnet   string // the first three numbers of the addresses
	ip, ipt  string // paths of the programs
	swallows float64
	// opened says that there is something to remove.
	opened bool
	// run executes a program; a test replaces it.
	run func(ctx context.Context, name string, args ...string) (string, error)
}

// newNetns checks that the machine can do it and chooses addresses that no interface of this machine has.
func newNetns(nodes, pid int) (*netns, error) {
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("the network %s needs Linux; use the network %s", NetworkNetns, NetworkInjector)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("the network %s needs root, to make network namespaces; use the network %s", NetworkNetns, NetworkInjector)
	}
	n := &netns{nodes: nodes, pid: pid, run: execute}
	for name, path := range map[string]*string{"ip": &n.ip, "iptables": &n.ipt} {
		found, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("the network %s needs the program %s: %w", NetworkNetns, name, err)
		}
		*path = found
	}
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	n.subnet, err = freeSubnet(taken, pid)
	return n, err
}

// freeSubnet chooses a /24 out of 10.0.0.0/8 that meets no address of this machine, starting at one that depends on the pid,
// so that two runs that start at the same time seldom choose the same.
func freeSubnet(taken []net.Addr, pid int) (string, error) {
	const subnets = 1 << 16
	for i := range subnets {
		at := (pid*257 + i) % subnets
		subnet := fmt.Sprintf("10.%d.%d", at>>8, at&0xff)
		_, candidate, err := net.ParseCIDR(subnet + ".0/24")
		if err != nil {
			return "", err
		}
		free := true
		for _, a := range taken {
			if other, ok := a.(*net.IPNet); ok && (candidate.Contains(other.IP) || other.Contains(candidate.IP)) {
				free = false
			}
		}
		if free {
			return subnet, nil
		}
	}
	return "", errors.New("this machine has addresses in every subnet of 10.0.0.0/8")
}

// address returns the address of node i.
func (n *netns) address(i int) string { return n.subnet + "." + strconv.Itoa(i+2) }

func (n *netns) hub() string { return "caprock-verify-" + strconv.Itoa(n.pid) + "-hub" }
func (n *netns) space(i int) string {
	return "caprock-verify-" + strconv.Itoa(n.pid) + "-n" + strconv.Itoa(i+1)
}
func (n *netns) hostInterface() string { return "cv" + strconv.Itoa(n.pid) }

// openCommands returns the arguments of ip that make the network.
func (n *netns) openCommands() [][]string {
	words := strings.Fields
	hub := n.hub()
	out := [][]string{
		words("netns add " + hub),
		words("-n " + hub + " link add br0 type bridge"),
		words("-n " + hub + " link set br0 up"),
		words("link add " + n.hostInterface() + " type veth peer name uplink netns " + hub),
		words("-n " + hub + " link set uplink master br0 up"),
		words("addr add " + n.subnet + ".1/24 dev " + n.hostInterface()),
		words("link set " + n.hostInterface() + " up"),
	}
	for i := range n.nodes {
		space, plug := n.space(i), "n"+strconv.Itoa(i+1)
		out = append(out,
			words("netns add "+space),
			words("-n "+space+" link set lo up"),
			words("-n "+space+" link add eth0 type veth peer name "+plug+" netns "+hub),
			words("-n "+hub+" link set "+plug+" master br0 up"),
			words("-n "+space+" addr add "+n.address(i)+"/24 dev eth0"),
			words("-n "+space+" link set eth0 up"),
		)
	}
	return out
}

func (n *netns) open(ctx context.Context) error {
	n.opened = true
	for _, args := range n.openCommands() {
		if _, err := n.run(ctx, n.ip, args...); err != nil {
			return err
		}
	}
	return nil
}

// wrap has the node run by `ip netns exec`, which becomes the node: its pid is the node's.
func (n *netns) wrap(i int, cmd *exec.Cmd) {
	cmd.Args = append([]string{n.ip, "netns", "exec", n.space(i), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = n.ip
}

// iptables returns the arguments of ip that run iptables on the incoming packets of node i.
func (n *netns) iptables(i int, action string, rest ...string) []string {
	return append([]string{"netns", "exec", n.space(i), n.ipt, "-w", action, "INPUT"}, rest...)
}

// cut drops packets where they arrive, by the address that they come from.
func (n *netns) cut(ctx context.Context, cuts []Cut) error {
	if err := n.heal(ctx); err != nil {
		return err
	}
	for _, c := range cuts {
		if _, err := n.run(ctx, n.ip, n.iptables(c.To, "-A", "-s", n.address(c.From), "-j", "DROP")...); err != nil {
			return err
		}
	}
	rules := 0
	for i := range n.nodes {
		listing, err := n.list(ctx, i)
		if err != nil {
			return err
		}
		_, here := droppedPackets(listing)
		rules += here
	}
	if rules != len(cuts) {
		return fmt.Errorf("iptables holds %d rules instead of %d", rules, len(cuts))
	}
	return nil
}

func (n *netns) list(ctx context.Context, i int) (string, error) {
	return n.run(ctx, n.ip, n.iptables(i, "-L", "-v", "-n", "-x")...)
}

// heal removes the rules, whose counters end with them.
func (n *netns) heal(ctx context.Context) error {
	now, err := n.counters(ctx)
	errs := []error{err}
	n.swallows += now
	for i := range n.nodes {
		_, err := n.run(ctx, n.ip, n.iptables(i, "-F")...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (n *netns) dropped(ctx context.Context) (float64, error) {
	now, err := n.counters(ctx)
	return n.swallows + now, err
}

// counters sums the packets that the rules in force have dropped.
func (n *netns) counters(ctx context.Context) (float64, error) {
	sum := 0.0
	for i := range n.nodes {
		listing, err := n.list(ctx, i)
		if err != nil {
			return 0, err
		}
		packets, _ := droppedPackets(listing)
		sum += packets
	}
	return sum, nil
}

// droppedPackets sums the packet counters of the DROP rules in a listing of iptables, and counts the rules.
func droppedPackets(listing string) (packets float64, rules int) {
	for line := range strings.Lines(listing) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "DROP" {
			continue
		}
		count, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			continue
		}
		packets, rules = packets+float64(count), rules+1
	}
	return packets, rules
}

// close removes what open made, however far it came. It takes no context: it also works after an interrupt.
func (n *netns) close() error {
	if !n.opened {
		return nil
	}
	listing, err := n.run(context.Background(), n.ip, "netns", "list")
	errs := []error{err}
	names := []string{n.hub()}
	for i := range n.nodes {
		names = append(names, n.space(i))
	}
	for _, name := range names {
		if !listed(listing, name) {
			continue
		}
		_, err := n.run(context.Background(), n.ip, "netns", "del", name)
		errs = append(errs, err)
	}
	// The end of the hub takes the interface along, but some time later. If it is gone, the command fails, rightly.
	_, _ = n.run(context.Background(), n.ip, "link", "del", n.hostInterface())
	if _, err := net.InterfaceByName(n.hostInterface()); err == nil {
		errs = append(errs, fmt.Errorf("the interface %s is still there", n.hostInterface()))
	}
	return errors.Join(errs...)
}

// listed reports whether `ip netns list` has the name.
func listed(listing, name string) bool {
	for line := range strings.Lines(listing) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == name {
			return true
		}
	}
	return false
}

// execute runs a program and returns what it printed.
func execute(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, netnsCommandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
