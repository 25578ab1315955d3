package quorum

import (
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Resolver decides between the concurrent versions of a key. It is deterministic: replicas that hold the same versions
// answer the same.
type Resolver interface {
	// Name is how policies spell the resolver.
	Name() string
	// Resolve picks the version to answer with from at least one.
	Resolve(versions []causal.Sibling) causal.Sibling
	// KeepsSiblings reports whether concurrent versions stay until a write covers them. Where it is false a write covers
	// all that its coordinator holds, and a version below a held one's stamp is refused.
	KeepsSiblings() bool
}

// LWW is the resolver by which the version with the highest stamp wins. Stamps compare the log position first, so that
// no clock can turn one against an acknowledged strong write.
type LWW struct{}

// Name returns "lww".
func (LWW) Name() string { return kv.ResolverLWW }

// Resolve returns the version with the highest stamp.
func (LWW) Resolve(versions []causal.Sibling) causal.Sibling { return lastWriter(versions) }

// KeepsSiblings returns false.
func (LWW) KeepsSiblings() bool { return false }

// Siblings is the resolver that keeps concurrent versions and leaves the choice to the reader.
type Siblings struct{}

// Name returns "siblings".
func (Siblings) Name() string { return kv.ResolverSiblings }

// Resolve returns the version with the highest stamp, for a reader that asked to have one picked.
func (Siblings) Resolve(versions []causal.Sibling) causal.Sibling { return lastWriter(versions) }

// KeepsSiblings returns true.
func (Siblings) KeepsSiblings() bool { return true }

// ResolverByName returns the resolver that a policy names, LWW for "". It returns nil for a name that no policy could
// have been stored with.
func ResolverByName(name string) Resolver {
	switch name {
	case "", kv.ResolverLWW:
		return LWW{}
	case kv.ResolverSiblings:
		return Siblings{}
	default:
		return nil
	}
}

func lastWriter(versions []causal.Sibling) causal.Sibling {
	w, _ := causal.SiblingSet{Siblings: versions}.Latest()
	return w
}
