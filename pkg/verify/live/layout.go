package live

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// layOut chooses the addresses and the network.
func (f *fleet) layOut(ctx context.Context, cfg Config) ([]Spec, error) {
	hosts := make([]string, cfg.Nodes)
	ports := make([][3]int, cfg.Nodes)
	if cfg.Network == NetworkNetns {
		ns, err := newNetns(cfg.Nodes, os.Getpid())
		if err != nil {
			return nil, err
		}
		f.net = ns
		for i := range hosts {
			hosts[i], ports[i] = ns.address(i), [3]int{8080, 9000, 7000} // each node has its own
		}
	} else {
		f.net = &injector{fleet: f}
		free, err := freePorts(ctx, 3*cfg.Nodes)
		if err != nil {
			return nil, err
		}
		for i := range hosts {
			hosts[i], ports[i] = loopback, [3]int(free[3*i:3*i+3])
		}
	}
	specs := make([]Spec, cfg.Nodes)
	var join, members []string
	for i := range specs {
		at := func(port int) string { return net.JoinHostPort(hosts[i], strconv.Itoa(port)) }
		name := "n" + strconv.Itoa(i+1)
		specs[i] = Spec{
			Name: name, Dir: filepath.Join(cfg.DataDir, name), HTTP: at(ports[i][0]), GRPC: at(ports[i][1]), Gossip: at(ports[i][2]),
		}
		join, members = append(join, specs[i].Gossip), append(members, name)
	}
	for i := range specs {
		specs[i].Join, specs[i].Members = join, members
	}
	return specs, nil
}

const (
	loopback = "127.0.0.1"
	// Ports come from below the range from which systems take the ports of outgoing connections: one of those could
	// otherwise take a node's port while the node is down.
	portMin, portMax = 12000, 32000
	portTriesMax     = 1000
)

// freePorts returns ports of the loopback interface that nobody listens on, neither by TCP nor by UDP.
func freePorts(ctx context.Context, count int) ([]int, error) {
	var out []int
	taken := map[int]bool{}
	for range portTriesMax {
		if len(out) == count {
			return out, nil
		}
		// Not from the run's seed: two runs of one seed at the same time need different ports.
		port := portMin + rand.IntN(portMax-portMin)
		if !taken[port] && portIsFree(ctx, net.JoinHostPort(loopback, strconv.Itoa(port))) {
			taken[port] = true
			out = append(out, port)
		}
	}
	return nil, fmt.Errorf("found no %d free ports on %s", count, loopback)
}

func portIsFree(ctx context.Context, address string) bool {
	var l net.ListenConfig
	tcp, err := l.Listen(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := l.ListenPacket(ctx, "udp", address)
	if err != nil {
		return false
	}
	return udp.Close() == nil
}
