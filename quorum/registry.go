package quorum

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caprockdb/caprock/pkg/kv"
)

// exprsMax bounds the compiled expressions that a registry keeps. Beyond it all of them are compiled anew when they are next
// needed.
const exprsMax = 1024

// Registry finds the resolver that a policy names: one of the built-in ones, or one that was registered. Its methods may be
// called from many goroutines.
type Registry struct {
	builtin map[string]Resolver
	// exprs are the compiled expressions by their source; the map is replaced, never changed.
	exprs atomic.Pointer[map[string]*Expr]

	// mu guards custom, and the replacing of exprs.
	mu sync.Mutex
	// custom are the registered resolvers; the map is replaced, never changed.
	custom atomic.Pointer[map[string]Resolver]
}

// NewRegistry returns a registry of the built-in resolvers. No fold makes a value of more than valueBytesMax bytes.
func NewRegistry(valueBytesMax int) *Registry {
	g := &Registry{builtin: map[string]Resolver{"": LWW{}}}
	for _, r := range []Resolver{LWW{}, Siblings{}, Extreme{}, Extreme{Least: true}, Union{ValueBytesMax: valueBytesMax}, Counter{}} {
		g.builtin[r.Name()] = r
	}
	g.exprs.Store(&map[string]*Expr{})
	g.custom.Store(&map[string]Resolver{})
	return g
}

// Register adds a resolver. Every node of a cluster must have the same ones, under the same names, before a policy names
// them: a node that does not know a key's resolver refuses to serve it at the levels eventual and local.
func (g *Registry) Register(r Resolver) error {
	name := r.Name()
	if name == "" {
		return errNoResolver
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, taken := g.builtin[name]; taken || name == kv.ResolverExpr {
		return errResolverTaken(name)
	}
	if _, taken := (*g.custom.Load())[name]; taken {
		return errResolverTaken(name)
	}
	next := maps.Clone(*g.custom.Load())
	next[name] = r
	g.custom.Store(&next)
	return nil
}

// Names returns the names of all resolvers.
func (g *Registry) Names() []string {
	return append(kv.Resolvers(), slices.Sorted(maps.Keys(*g.custom.Load()))...)
}

// Resolver returns the resolver that a policy names, with its expression; LWW for "". The error is a *kv.Error that says what
// is wrong with the policy.
func (g *Registry) Resolver(name, expr string) (Resolver, error) {
	if name == kv.ResolverExpr {
		return g.expr(expr)
	}
	if r, ok := g.builtin[name]; ok {
		return r, nil
	}
	if r, ok := (*g.custom.Load())[name]; ok {
		return r, nil
	}
	return nil, errUnknownResolver(name, g.Names())
}

// expr returns the compiled expression. Compiling takes a good part of a millisecond, once for each expression.
func (g *Registry) expr(source string) (Resolver, error) {
	if x := (*g.exprs.Load())[source]; x != nil {
		return x, nil
	}
	x, err := NewExpr(source)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	next := map[string]*Expr{}
	if old := *g.exprs.Load(); len(old) < exprsMax {
		next = maps.Clone(old)
	}
	next[source] = x
	g.exprs.Store(&next)
	return x, nil
}
