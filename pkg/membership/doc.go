// Package membership says who is alive and where they listen, by gossip.
//
// It owns memberlist and nothing else. It never decides who owns a partition: ownership is group 0's, and two nodes may
// disagree about who is alive at any time. Members that died stay listed, as not alive. Halves of a cluster that lost
// sight of each other find back because the members that the partition map knows are joined again every 10 to 15 s:
// memberlist by itself forgets the dead.
package membership
