package node

import (
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/storage"
)

// Inspect calls f with the node's storage, unless the node has stopped; a stop waits for f to return. It is for whoever
// judges a node from within, such as the simulator, and must not write.
func (n *Node) Inspect(f func(*storage.Engine) error) error {
	if !n.gate.enter() {
		return kv.Errorf(kv.CodeNotReady, "node %s has stopped", n.cfg.Name)
	}
	defer n.gate.leave()
	return f(n.engine)
}
