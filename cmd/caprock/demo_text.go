package main

import (
	"fmt"
	"strings"
)

// describe says where the cluster listens and what to try.
func (d *demo) describe() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	first, last := d.nodes[0], d.nodes[len(d.nodes)-1]
	second := d.nodes[min(1, len(d.nodes)-1)]

	line("Caprock is ready: %d nodes, data and logs in %s", len(d.nodes), d.cfg.dataDir)
	line("")
	b.WriteString(d.addresses())
	line("")
	line("Try:")
	line("  # strong: linearizable, from any node")
	line("  curl -X PUT '%s/kv/account:balance?consistency=strong' -d '{\"value\":\"1000.00\"}'", first.http)
	line("  curl '%s/kv/account:balance?consistency=strong'", second.http)
	line("  # eventual: %d of the replicas acknowledge, whoever they are", min(2, len(d.nodes)))
	line("  curl -X PUT '%s/kv/likes?consistency=eventual&w=%d' -d '{\"value\":\"7\"}'", last.http, min(2, len(d.nodes)))
	line("  curl '%s/kv/likes?consistency=eventual'", first.http)
	line("  # local: whatever the nearest replica holds")
	line("  curl '%s/kv/likes?consistency=local'", second.http)
	line("  # create only if it is not there")
	line("  curl -X PUT '%s/kv/lock?if-version=0' -d '{\"value\":\"mine\"}'", loopback(d.cfg.httpPort))
	line("  # the cluster")
	line("  %s status --endpoints %s", shellQuote(d.binary), d.endpoints())
	if len(d.nodes) > 2 {
		line("  # lose a node, leader or not: both lanes go on; then start it again")
		line("  kill -9 %d", first.cmd.Process.Pid)
		line("  %s &", shellQuote(first.scriptPath()))
	}
	return b.String()
}

// addresses says where the cluster listens.
func (d *demo) addresses() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  gateway  http://%s\n", loopback(d.cfg.httpPort))
	for _, n := range d.nodes {
		fmt.Fprintf(&b, "  %-7s  http://%s  grpc %s  redis %s\n", n.name, n.http, n.grpc, n.resp)
	}
	return b.String()
}

func (d *demo) endpoints() string {
	addresses := make([]string, len(d.nodes))
	for i, n := range d.nodes {
		addresses[i] = n.grpc
	}
	return strings.Join(addresses, ",")
}
