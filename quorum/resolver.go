package quorum

import (
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Resolver decides between the concurrent versions of a key. Nothing that it says may depend on anything but its
// arguments: replicas that hold the same versions have to answer the same. Its methods are called from many goroutines.
type Resolver interface {
	// Name is how policies spell the resolver.
	Name() string
	// Resolve makes the version to answer with out of at least one, in any order. None of them has been replaced by
	// another; those that are deleted are tombstones, or have expired. It changes none of them.
	//
	// The order of the versions must not matter, nor whether some were resolved before the others, as far as Fold does so.
	Resolve(versions []causal.Sibling) causal.Sibling
	// KeepsSiblings reports whether concurrent versions stay until a write covers them. Where it is false a write covers
	// all that its coordinator holds, and a version below a held one's stamp is refused.
	KeepsSiblings() bool
	// Blind says what becomes of the versions that its coordinator holds when a write comes without a context.
	Blind() Blind
}

// Blind is what a write without a context does with the versions that its coordinator holds.
type Blind uint8

const (
	// BlindStays puts the write beside them, as one more sibling.
	BlindStays Blind = iota
	// BlindReplaces has the write replace them.
	BlindReplaces
	// BlindFolds has the write take them in: what is stored is what Folder.Fold makes of all of them, and replaces them. A
	// deletion replaces them.
	BlindFolds
)

// Folder is a Resolver whose writes take in what their coordinator holds: its Blind is BlindFolds. A key then has at most as
// many siblings as coordinators that wrote it at once.
type Folder interface {
	Resolver
	// Check refuses a value that Fold could make nothing of, before anything is sent. The error is a *kv.Error.
	Check(value []byte, hasContext bool) error
	// Fold returns the value to store for a write. The error is a *kv.Error.
	Fold(f Fold) ([]byte, error)
}

// Fold is a write together with what it takes in.
type Fold struct {
	// Value is what the user wrote.
	Value []byte
	// Again says that the write is stamped anew: Held has its earlier attempt, or what took that in.
	Again bool
	// Held are the live versions that the write takes in. Those that its context covers are replaced and not among them.
	Held []causal.Sibling
	// Dot is the write's.
	Dot causal.Dot
	// Last is the dot of this node's last write of the key, zero if this node cannot be sure which that was.
	Last causal.Dot
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

// Blind returns BlindReplaces.
func (LWW) Blind() Blind { return BlindReplaces }

// Siblings is the resolver that keeps concurrent versions and leaves the choice to the reader.
type Siblings struct{}

// Name returns "siblings".
func (Siblings) Name() string { return kv.ResolverSiblings }

// Resolve returns the version with the highest stamp, for a reader that asked to have one picked.
func (Siblings) Resolve(versions []causal.Sibling) causal.Sibling { return lastWriter(versions) }

// KeepsSiblings returns true.
func (Siblings) KeepsSiblings() bool { return true }

// Blind returns BlindStays.
func (Siblings) Blind() Blind { return BlindStays }

func lastWriter(versions []causal.Sibling) causal.Sibling {
	w, _ := causal.SiblingSet{Siblings: versions}.Latest()
	return w
}

// alive returns the versions that hold a value, in a slice of its own only if some do not.
func alive(versions []causal.Sibling) []causal.Sibling {
	for i := range versions {
		if !versions[i].Deleted {
			continue
		}
		out := append(make([]causal.Sibling, 0, len(versions)), versions[:i]...)
		for _, s := range versions[i+1:] {
			if !s.Deleted {
				out = append(out, s)
			}
		}
		return out
	}
	return versions
}

// latestExpiry returns when the last of the versions expires: never if one of them never does.
func latestExpiry(versions []causal.Sibling) causal.HLC {
	var latest causal.HLC
	for i := range versions {
		at := versions[i].Expiry
		if at == 0 {
			return 0
		}
		latest = max(latest, at)
	}
	return latest
}

// resolveJoin is Resolve for a resolver that joins values. A value wins over a concurrent deletion, which did not know
// of it. The answer has the stamp of the last writer.
func resolveJoin(versions []causal.Sibling, join func([]causal.Sibling) []byte) causal.Sibling {
	live := alive(versions)
	if len(live) == 0 {
		return lastWriter(versions)
	}
	out := lastWriter(live)
	out.Value, out.State = join(live), false
	out.Expiry = latestExpiry(live)
	return out
}

// plain returns the version as a user sees it, whoever decided over it.
func plain(s causal.Sibling) causal.Sibling {
	if s.State {
		s.Value, s.State = counterText(s.Value), false
	}
	return s
}
