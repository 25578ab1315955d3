package kv

import (
	"slices"
	"strings"
	"time"
)

// The resolvers that a policy can name.
const (
	// ResolverLWW keeps the version with the highest stamp.
	ResolverLWW = "lww"
	// ResolverSiblings keeps concurrent versions until a write covers them.
	ResolverSiblings = "siblings"
	// ResolverMax keeps the greatest of the values written, ResolverMin the least: numbers by what they say, below all else,
	// which goes by its bytes.
	ResolverMax = "max"
	ResolverMin = "min"
	// ResolverUnion keeps the elements of all JSON arrays written.
	ResolverUnion = "union"
	// ResolverCounter adds up the whole numbers written.
	ResolverCounter = "counter"
	// ResolverExpr has Policy.Expr decide between two versions at a time.
	ResolverExpr = "expr"
)

// Resolvers returns the names of the built-in resolvers.
func Resolvers() []string {
	return []string{
		ResolverLWW, ResolverSiblings, ResolverMax, ResolverMin, ResolverUnion, ResolverCounter, ResolverExpr,
	}
}

// What a policy says about read repair.
const (
	// RepairBackground brings replicas that a read found behind up to date after the read was answered.
	RepairBackground = "background"
	// RepairBlocking does so before the read is answered.
	RepairBlocking = "blocking"
	// RepairOff leaves replicas that are behind to anti-entropy.
	RepairOff = "off"
)

// What a policy says about the disk. It is about the levels other than strong: what Raft acknowledges is always durable, since one
// acknowledgement that is lost is unsound for all keys of a group.
const (
	// DurabilitySync acknowledges a write once the disk has synced it.
	DurabilitySync = "sync"
	// DurabilityAsync acknowledges a write once reads find it and it is queued for the log, which is synced some milliseconds later.
	DurabilityAsync = "async"
)

// The lanes that a policy allows.
const (
	// LanesMixed allows every level.
	LanesMixed = "mixed"
	// LanesStrongOnly allows level strong alone.
	LanesStrongOnly = "strong-only"
	// LanesEventualOnly allows every level but strong.
	LanesEventualOnly = "eventual-only"
)

// AllLanes returns what Policy.Lanes can be.
func AllLanes() []string { return []string{LanesMixed, LanesStrongOnly, LanesEventualOnly} }

const (
	// ExprBytesMax bounds Policy.Expr.
	ExprBytesMax = 4 << 10
	// resolverNameBytesMax bounds the name of a resolver.
	resolverNameBytesMax = 64
)

// Policy is what a key prefix declares about its keys. The longest prefix that matches a key decides; what it leaves
// unset falls to the cluster's defaults.
type Policy struct {
	// Prefix is what the keys start with.
	// Invariant, once validated: 1 to KeyBytesMax bytes.
	Prefix []byte
	// Default is the level of requests that name none; LevelUnset leaves it to the cluster.
	Default Level
	// Lanes says which levels requests may ask for; "" means LanesMixed.
	Lanes string `json:",omitempty"`
	// Quorum holds the defaults of N, R and W; zero leaves one to the cluster.
	Quorum
	// Resolver decides between concurrent versions; "" means ResolverLWW.
	Resolver string
	// Expr is the CEL expression of ResolverExpr, and empty with any other.
	Expr string `json:",omitempty"`
	// TTL is the time to live of values that are put without one, in whole milliseconds; 0: for ever.
	TTL time.Duration `json:",omitempty"`
	// ReadRepair says when a read brings replicas up to date that lacked something; "" means RepairBackground.
	ReadRepair string `json:",omitempty"`
	// Durability says when replicas acknowledge eventual writes; "" means DurabilitySync. DurabilityAsync goes with ResolverLWW alone: a
	// version that is lost with a node's memory would be taken for replaced by the node's next write, and where versions are kept beside one
	// another with it whatever it had replaced.
	Durability string `json:",omitempty"`
}

// Async reports whether writes are acknowledged before the disk has synced them.
func (p *Policy) Async() bool { return p.Durability == DurabilityAsync }

// Validate checks what can be checked of a policy without knowing the cluster. The error has code CodeBadQuorum when
// N, R and W contradict one another, CodeUnknownConsistency for a bad default level, otherwise CodeBadRequest.
func (p *Policy) Validate() error {
	if len(p.Prefix) == 0 {
		return Errorf(CodeBadRequest, "the prefix is empty; what holds for all keys is set in the cluster's configuration")
	}
	if len(p.Prefix) > KeyBytesMax {
		return Errorf(CodeKeyTooLarge, "the prefix has %d bytes; the limit is %d", len(p.Prefix), KeyBytesMax)
	}
	switch {
	case p.Durability != "" && p.Durability != DurabilitySync && p.Durability != DurabilityAsync:
		return Errorf(CodeBadRequest, "unknown durability %q; it is %s or %s", p.Durability, DurabilitySync, DurabilityAsync)
	case p.Async() && p.Resolver != "" && p.Resolver != ResolverLWW:
		return Errorf(CodeBadRequest, "durability %s goes with the resolver %s, not with %q", DurabilityAsync, ResolverLWW, p.Resolver)
	case p.Async() && p.Lanes == LanesStrongOnly:
		return Errorf(CodeBadRequest, "durability %s is of no use with lanes=%s: a strong write is always synced", DurabilityAsync, LanesStrongOnly)
	}
	if p.Default == LevelCausal {
		return Errorf(CodeBadRequest, "level causal goes with the session of a request, so that it cannot be a default")
	}
	if p.Default == LevelBounded {
		return Errorf(CodeBadRequest, "level bounded only reads and goes with the max-staleness of a request, so that it cannot be a default")
	}
	if p.Default != LevelUnset && !p.Default.Valid() {
		return Errorf(CodeUnknownConsistency, "unknown consistency level %d", p.Default)
	}
	if p.Lanes != "" && !slices.Contains(AllLanes(), p.Lanes) {
		return Errorf(CodeBadRequest, "unknown lanes %q; they are %s", p.Lanes, strings.Join(AllLanes(), ", "))
	}
	if p.Default != LevelUnset && p.fences(p.Default) {
		return Errorf(CodeBadRequest, "the default level %s is one that lanes=%s refuses", p.Default, p.Lanes)
	}
	if err := p.Quorum.validateDefaults(); err != nil {
		return err
	}
	if err := p.validateResolver(); err != nil {
		return err
	}
	if p.TTL < 0 || p.TTL > TTLMax || p.TTL%time.Millisecond != 0 {
		return Errorf(CodeBadRequest, "ttl=%s is out of range: it is whole milliseconds, at least one and at most %d hours", p.TTL, int(TTLMax.Hours()))
	}
	switch p.ReadRepair {
	case "", RepairBackground, RepairBlocking, RepairOff:
		return nil
	default:
		return Errorf(CodeBadRequest, "unknown read_repair %q; it is one of %s, %s, %s", p.ReadRepair, RepairBackground, RepairBlocking, RepairOff)
	}
}

// fences reports whether the policy refuses requests of the level.
func (p *Policy) fences(l Level) bool {
	switch p.Lanes {
	case LanesStrongOnly:
		return l != LevelStrong
	case LanesEventualOnly:
		return l == LevelStrong
	default:
		return false
	}
}

// Admit refuses, with CodeLevelFenced, a request of a level that the policy does not allow.
func (p *Policy) Admit(l Level) error {
	if !p.fences(l) {
		return nil
	}
	return Errorf(CodeLevelFenced, "the policy of the prefix %q is %s: it refuses level %s", p.Prefix, p.Lanes, l)
}

// LevelFor returns the level of a request that names none, of which cluster is the cluster's default.
func (p *Policy) LevelFor(cluster Level) Level {
	switch {
	case p.Default != LevelUnset:
		return p.Default
	case p.fences(cluster) && p.Lanes == LanesStrongOnly:
		return LevelStrong
	case p.fences(cluster):
		return LevelEventual
	}
	return cluster
}

// validateResolver checks what can be checked of the resolver without knowing which ones the cluster's nodes have beside the
// built-in ones, and whether the expression is one.
func (p *Policy) validateResolver() error {
	switch {
	case len(p.Resolver) > resolverNameBytesMax || strings.IndexFunc(p.Resolver, notInName) >= 0:
		return Errorf(CodeBadRequest, "unknown resolver; the resolvers are %s", strings.Join(Resolvers(), ", "))
	case p.Resolver == ResolverExpr && p.Expr == "":
		return Errorf(CodeBadRequest, "the resolver %s needs expr", ResolverExpr)
	case p.Resolver != ResolverExpr && p.Expr != "":
		return Errorf(CodeBadRequest, "expr goes with the resolver %s, not with %q", ResolverExpr, p.Resolver)
	case len(p.Expr) > ExprBytesMax:
		return Errorf(CodeBadRequest, "expr has %d bytes; the limit is %d", len(p.Expr), ExprBytesMax)
	}
	return nil
}

func notInName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || slices.Contains([]rune("-_."), r))
}

// validateDefaults checks a quorum of which any part may be unset. R and W are compared with N only where N is set,
// because the number of replicas is the cluster's to know.
func (q Quorum) validateDefaults() error {
	for _, c := range []struct {
		name  string
		value int
	}{{"n", q.N}, {"r", q.R}, {"w", q.W}} {
		switch {
		case c.value < 0:
			return Errorf(CodeBadQuorum, "%s=%d is out of range: it is at least 1", c.name, c.value)
		case q.N > 0 && c.value > q.N:
			return Errorf(CodeBadQuorum, "%s=%d is out of range: 1 <= %s <= n=%d", c.name, c.value, c.name, q.N)
		}
	}
	return nil
}
