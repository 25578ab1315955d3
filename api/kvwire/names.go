package kvwire

// namesMax bounds the names that are kept; a cluster has far fewer nodes.
const namesMax = 1024

// Names keeps one string for each name that comes again and again: nodes and codes. Not safe for concurrent use. The zero
// value is ready, and a nil *Names keeps nothing.
type Names struct{ known map[string]string }

// intern returns b as a string.
func (n *Names) intern(b []byte) string {
	if n == nil || len(b) == 0 {
		return string(b)
	}
	if s, ok := n.known[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(n.known) < namesMax {
		if n.known == nil {
			n.known = make(map[string]string)
		}
		n.known[s] = s
	}
	return s
}
