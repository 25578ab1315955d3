// Package sim runs whole clusters in one process: real nodes on a simulated network, simulated gossip and crashable disks
// in memory.
//
// It owns the network (Network, whose wires implement transport.Wire), the gossip network (for memberlist) and the
// cluster that ties them together with power cuts and clock skew. A Scenario draws a Plan of faults, which Nemesis carries
// out; Dump and WaitConverged compare what replicas hold. It is meant for testing/synctest bubbles, in which time
// is simulated too.
//
// Invariants:
//   - Nothing in the networks waits for ever: what cannot be delivered is dropped.
//   - What a node says after its crash reaches nobody: a life that was detached stays fenced.
//   - Every choice comes from a seed. In a bubble time is exact but the order of goroutines is not, so that a seed
//     reproduces a failure probably, not surely.
//
// It is no part of a running node and never touches a real network or disk.
package sim
