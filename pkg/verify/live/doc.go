// Package live runs the workloads of package verify against real processes while it breaks them. It starts a cluster, or
// attaches to one, injects faults that a seed decides, mends everything, waits until the replicas agree, and judges what
// the clients saw.
//
// # Parts
//
//	Config, Deps   what to run, and how a node's process is made (the caller knows the command line)
//	planner        pure: draws one Step after the other from the seed: how long calm, which fault, whom, how long
//	fault          one step carried out: begin, hold, end; end says what it saw the fault do
//	network        cuts links: by the nodes' fault injector, or by iptables in network namespaces
//	fleet          the nodes: their processes and their admin routes
//	target         a verify.Target over the Go client, with one client for each node
//	Run            all of it, in order; the Outcome is a Report and the History
//
// # Invariants
//
//   - A fault that was not seen to take effect makes the run invalid. A run whose faults did nothing proves nothing.
//   - At most one fault is in force at a time, so that the timeline says what a node suffered when.
//   - Whatever happens, faults are taken back, paused processes go on before they are ended, and every process that was
//     started, every namespace and every interface is gone when Run returns.
//   - Only processes that Run started are ever signalled. In an attached cluster nothing is touched but /admin/faults and,
//     for the causal workload, one policy that is deleted at the end.
//
// The package never writes to a terminal, reads the environment or looks for a binary.
package live
