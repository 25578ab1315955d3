package kv

// The resolvers that a policy can name.
const (
	// ResolverLWW keeps the version with the highest stamp.
	ResolverLWW = "lww"
	// ResolverSiblings keeps concurrent versions until a write covers them.
	ResolverSiblings = "siblings"
)

// Policy is what a key prefix declares about its keys. The longest prefix that matches a key decides; what it leaves
// unset falls to the cluster's defaults.
type Policy struct {
	// Prefix is what the keys start with.
	// Invariant, once validated: 1 to KeyBytesMax bytes.
	Prefix []byte
	// Default is the level of requests that name none; LevelUnset leaves it to the cluster.
	Default Level
	// Quorum holds the defaults of N, R and W; zero leaves one to the cluster.
	Quorum
	// Resolver decides between concurrent versions; "" means ResolverLWW.
	Resolver string
}

// Validate checks what can be checked of a policy without knowing the cluster. The error has code CodeBadQuorum when
// N, R and W contradict one another, CodeUnknownConsistency for a bad default level, otherwise CodeBadRequest.
func (p *Policy) Validate() error {
	if len(p.Prefix) == 0 {
		return Errorf(CodeBadRequest, "the prefix is empty; what holds for all keys is set in the cluster's configuration")
	}
	if len(p.Prefix) > KeyBytesMax {
		return Errorf(CodeKeyTooLarge, "the prefix has %d bytes; the limit is %d", len(p.Prefix), KeyBytesMax)
	}
	if p.Default != LevelUnset && !p.Default.Valid() {
		return Errorf(CodeUnknownConsistency, "unknown consistency level %d", p.Default)
	}
	if err := p.Quorum.validateDefaults(); err != nil {
		return err
	}
	switch p.Resolver {
	case "", ResolverLWW, ResolverSiblings:
		return nil
	default:
		return Errorf(CodeBadRequest, "unknown resolver %q; the resolvers are %s, %s", p.Resolver, ResolverLWW, ResolverSiblings)
	}
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
