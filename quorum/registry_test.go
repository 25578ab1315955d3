package quorum

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/kv"
)

func TestResolversAreFoundByTheNamesOfPolicies(t *testing.T) {
	g := NewRegistry(kv.ValueBytesMax)
	r, err := g.Resolver("", "")
	require.NoError(t, err)
	require.Equal(t, LWW{}, r)
	for _, name := range kv.Resolvers() {
		p := kv.Policy{Prefix: []byte("p"), Resolver: name}
		if name == kv.ResolverExpr {
			p.Expr = "true"
		}
		require.NoError(t, p.Validate())
		r, err := g.Resolver(p.Resolver, p.Expr)
		require.NoError(t, err)
		require.Equal(t, name, r.Name())
		_, folds := r.(Folder)
		require.Equal(t, folds, r.Blind() == BlindFolds)
		require.Error(t, g.Register(r), "a built-in resolver cannot be replaced")
	}
	_, err = g.Resolver("newest", "")
	require.Equal(t, kv.CodeBadRequest, kv.CodeOf(err))
	require.ErrorContains(t, err, "union")
	_, err = g.Resolver(kv.ResolverExpr, "a.value +")
	require.Equal(t, kv.CodeBadRequest, kv.CodeOf(err))
}

func TestRegistryKeepsABoundedNumberOfExpressions(t *testing.T) {
	g := NewRegistry(kv.ValueBytesMax)
	first, err := g.Resolver(kv.ResolverExpr, "true")
	require.NoError(t, err)
	again, err := g.Resolver(kv.ResolverExpr, "true")
	require.NoError(t, err)
	require.Same(t, first, again)
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range exprsMax/2 + 10 {
				if _, err := g.Resolver(kv.ResolverExpr, fmt.Sprintf("a.node > %d", w*exprsMax+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, len(*g.exprs.Load()), exprsMax)
}
