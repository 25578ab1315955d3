package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/api"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
)

// backend lets the fronts of package api reach a node. It only translates; api must not know the node, nor the node api.
type backend struct {
	*node.Node
}

var _ api.Backend = backend{}

// Document implements api.Backend.
func (b backend) Document(ctx context.Context, name string) (any, error) {
	switch name {
	case api.DocStatus:
		return b.Status(), nil
	case api.DocRing:
		return b.Ring(), nil
	case api.DocNodes:
		return map[string]any{"nodes": b.Nodes()}, nil
	case api.DocPartitions:
		return map[string]any{"partitions": b.Partitions()}, nil
	case api.DocStats:
		return b.Stats(), nil
	}
	if number, ok := strings.CutPrefix(name, api.DocPartition+"/"); ok {
		p, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, kv.Errorf(kv.CodeBadRequest, "%q is no number of a partition", number)
		}
		if doc, ok := b.Partition(kv.PartitionID(p)); ok {
			return doc, nil
		}
		return nil, nil // there is none, which is no failure
	}
	if number, ok := strings.CutPrefix(name, api.DocCheck+"/"); ok {
		p, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, kv.Errorf(kv.CodeBadRequest, "%q is no number of a partition", number)
		}
		if doc, ok, err := b.CheckPartition(ctx, kv.PartitionID(p)); ok || err != nil {
			return doc, err
		}
		return nil, nil
	}
	return nil, fmt.Errorf("no document is called %q", name)
}

// Policies implements api.Backend.
func (b backend) Policies() api.PolicyStore { return policyStore(b) }

// Faults implements api.Backend.
func (b backend) Faults() api.FaultStore {
	if f := b.Node.Faults(); f != nil {
		return faultStore{f}
	}
	return nil
}

// policyStore keeps policies in group 0.
type policyStore backend

// List implements api.PolicyStore.
func (s policyStore) List(context.Context) ([]kv.Policy, error) { return s.Node.Policies(), nil }

// Get implements api.PolicyStore.
func (s policyStore) Get(_ context.Context, prefix []byte) (kv.Policy, bool, error) {
	all := s.Node.Policies()
	i := slices.IndexFunc(all, func(p kv.Policy) bool { return string(p.Prefix) == string(prefix) })
	if i < 0 {
		return kv.Policy{}, false, nil
	}
	return all[i], true, nil
}

// Switches implements api.PolicyStore.
func (s policyStore) Switches(ctx context.Context, prefix []byte) []kv.LaneSwitch {
	if len(prefix) == 0 {
		return s.Node.Switches(ctx)
	}
	return s.PolicyState(ctx, prefix)
}

// Put implements api.PolicyStore. The policy is in force on this node when it returns, and on the others once they have
// applied the same entry.
func (s policyStore) Put(ctx context.Context, p kv.Policy) (kv.Policy, error) {
	return p, s.SetPolicy(ctx, p)
}

// Delete implements api.PolicyStore.
func (s policyStore) Delete(ctx context.Context, prefix []byte) error {
	return s.DeletePolicy(ctx, prefix)
}
