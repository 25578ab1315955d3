package transport

import (
	"fmt"
	"strconv"

	"google.golang.org/grpc/metadata"

	"github.com/caprockdb/caprock/pkg/kv"
)

// protocolVersion changes when nodes of different versions could no longer understand each other's batches.
const protocolVersion = 1

// The metadata by which two nodes introduce themselves. A name may hold any bytes, which "-bin" provides for.
const (
	mdProtocol = "caprock-protocol"
	mdCluster  = "caprock-cluster"
	mdNodeID   = "caprock-node-id"
	mdNodeName = "caprock-node-name-bin"
	mdTo       = "caprock-to"
)

// Identity says who a node is.
type Identity struct {
	Node kv.NodeID
	Name string
	// Cluster is 0 while the node does not know it.
	Cluster uint64
}

func (i Identity) String() string { return fmt.Sprintf("%s (node %d)", i.Name, i.Node) }

// metadata is how the node introduces itself.
func (i Identity) metadata() metadata.MD {
	return metadata.Pairs(
		mdProtocol, strconv.Itoa(protocolVersion),
		mdCluster, strconv.FormatUint(i.Cluster, 16),
		mdNodeID, strconv.FormatUint(uint64(i.Node), 10),
		mdNodeName, i.Name,
	)
}

// introduced reads how a peer introduced itself.
func introduced(md metadata.MD) (Identity, error) {
	version, err := numberIn(md, mdProtocol, 10)
	if err != nil {
		return Identity{}, err
	}
	if version != protocolVersion {
		return Identity{}, fmt.Errorf("%w: it has %d, this node %d", ErrProtocol, version, protocolVersion)
	}
	cluster, err := numberIn(md, mdCluster, 16)
	if err != nil {
		return Identity{}, err
	}
	node, err := numberIn(md, mdNodeID, 10)
	if err != nil {
		return Identity{}, err
	}
	out := Identity{Node: kv.NodeID(node), Cluster: cluster}
	if names := md.Get(mdNodeName); len(names) == 1 {
		out.Name = names[0]
	}
	return out, nil
}

func numberIn(md metadata.MD, key string, base int) (uint64, error) {
	values := md.Get(key)
	if len(values) != 1 {
		return 0, fmt.Errorf("%w: the peer did not introduce itself: it gave %d values of %s", ErrProtocol, len(values), key)
	}
	v, err := strconv.ParseUint(values[0], base, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %q", ErrProtocol, key, values[0])
	}
	return v, nil
}

// belongs checks that the peer is of the same cluster, as far as both know theirs, and another node.
func (i Identity) belongs(peer Identity) error {
	if i.Cluster != 0 && peer.Cluster != 0 && i.Cluster != peer.Cluster {
		return fmt.Errorf("%w: %v is of cluster %016x, %v of %016x", ErrForeignCluster, peer, peer.Cluster, i, i.Cluster)
	}
	if peer.Node == i.Node || peer.Node == kv.NoNode {
		return fmt.Errorf("%w: %v says it is %v", ErrWrongNode, i, peer)
	}
	return nil
}
