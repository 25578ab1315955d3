// Package node composes one Caprock node: it owns the router that takes a request at any level to the lane and the
// node that can serve it, the replica service in which both lanes meet, and the life of everything below it.
//
// Invariants:
//   - A request is answered at the level it asked for, or refused; it is never silently weakened.
//   - A request is forwarded at most hopsMax times.
//   - Peers are served only while the epochs agree; whoever is behind learns so and tries again.
//   - A node with an empty disk takes part in group 0 only after the other members have confirmed that its id is new.
//   - Without room on its disk a node refuses writes before anything of them is written, and goes on reading (space.go).
//
// It opens no listener and parses no user input: cmd wires listeners to it, and the simulator runs it without any.
package node
