package quorum

import (
	"fmt"

	"github.com/caprockdb/caprock/pkg/causal"
)

// longest is a resolver of one's own: of concurrent values the longest is the key's, and of equally long ones the greatest.
type longest struct{}

func (longest) Name() string { return "longest" }

// KeepsSiblings says that concurrent versions stay: all replicas decide between the same ones when they are read.
func (longest) KeepsSiblings() bool { return true }

// Blind says that a write without a context replaces what its coordinator holds, so that siblings are only left by
// writes that were concurrent indeed.
func (longest) Blind() Blind { return BlindReplaces }

// Resolve looks at nothing but the versions, and does not depend on their order.
func (longest) Resolve(versions []causal.Sibling) causal.Sibling {
	best := versions[0]
	for _, s := range versions[1:] {
		switch a, b := string(best.Value), string(s.Value); {
		case len(b) > len(a), len(b) == len(a) && b > a:
			best = s
		}
	}
	return best
}

// Every node of the cluster is given a registry with the resolver (node.Deps.Resolvers) before a policy names it.
func ExampleRegistry_Register() {
	registry := NewRegistry(1 << 20)
	if err := registry.Register(longest{}); err != nil {
		fmt.Println(err)
		return
	}
	r, err := registry.Resolver("longest", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	winner := r.Resolve([]causal.Sibling{{Value: []byte("red")}, {Value: []byte("green")}, {Value: []byte("blue")}})
	fmt.Printf("%s\n", winner.Value)
	fmt.Println(registry.Register(longest{}))
	// Output:
	// green
	// quorum: there is a resolver "longest" already
}
