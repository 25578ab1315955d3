package kvwire

// Keys of the header that a node opens a stream with. A client needs them to send operations straight to the node that works
// on them; it can do without.
const (
	// HeaderNode is the node's name, as results name coordinators.
	HeaderNode = "caprock-node"
	// HeaderPartitions is the number of partitions of the cluster. It is left out while the node has no partition map.
	HeaderPartitions = "caprock-partitions"
)
