package quorum

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// exprCostMax bounds one evaluation, in CEL's units: about ten bytes of text looked at, or one operation. It allows a few
	// looks at two values of the largest size.
	exprCostMax = 1_000_000
	// exprDepthMax bounds how deeply an expression nests.
	exprDepthMax = 64
)

// Expr is the resolver that has a CEL expression decide between two versions, the earlier a and the later b, by stamp. It
// answers whether a stays (a bool), or the value that both become (a string).
//
// Several versions are folded from the earliest to the latest, a being what the fold has made so far. That order is the same
// wherever the same versions are held, so that replicas agree whatever the expression; no version is ever folded into
// another where it is stored, so that the expression need not be associative for them to converge. Where an evaluation
// fails, because a value is not what the expression expects or it would cost too much, b stays.
//
// An expression sees the two versions and nothing else: there are no macros, because those iterate, over maps in no
// particular order, and no function of the standard library knows the time.
type Expr struct {
	program cel.Program
}

// NewExpr compiles the expression and checks its types and its cost. The error is a *kv.Error that says what is wrong.
func NewExpr(source string) (*Expr, error) {
	if len(source) > kv.ExprBytesMax {
		return nil, kv.Errorf(kv.CodeBadRequest, "expr has %d bytes; the limit is %d", len(source), kv.ExprBytesMax)
	}
	options := []cel.EnvOption{
		cel.ClearMacros(), cel.ParserExpressionSizeLimit(kv.ExprBytesMax), cel.ParserRecursionLimit(exprDepthMax),
	}
	for _, side := range [...]string{"a", "b"} {
		options = append(options,
			cel.Variable(side+".value", cel.StringType), cel.Variable(side+".timestamp", cel.TimestampType), cel.Variable(side+".node", cel.IntType))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, kv.Errorf(kv.CodeInternal, "expr cannot be compiled: %w", err)
	}
	ast, issues := env.Compile(source)
	if issues.Err() != nil {
		return nil, exprError(issues.Err())
	}
	if kind := ast.OutputType(); !kind.IsExactType(cel.BoolType) && !kind.IsExactType(cel.StringType) {
		return nil, kv.Errorf(kv.CodeBadRequest, "expr answers with a %s; it answers with a bool, whether a stays, or with a string, the value of both", kind)
	}
	cost, err := env.EstimateCost(ast, nil)
	if err != nil {
		return nil, exprError(err)
	}
	if cost.Min > exprCostMax {
		return nil, kv.Errorf(kv.CodeBadRequest, "expr costs at least %d; the limit is %d", cost.Min, exprCostMax)
	}
	program, err := env.Program(ast, cel.CostLimit(exprCostMax))
	if err != nil {
		return nil, exprError(err)
	}
	return &Expr{program: program}, nil
}

// exprError is the error of an expression that is none. CEL draws the place on lines of its own.
func exprError(err error) error {
	return kv.Errorf(kv.CodeBadRequest, "expr is not valid over a.value, a.timestamp, a.node and those of b: %s", strings.Join(strings.Fields(err.Error()), " "))
}

// Name returns "expr".
func (*Expr) Name() string { return kv.ResolverExpr }

// KeepsSiblings returns true.
func (*Expr) KeepsSiblings() bool { return true }

// Blind returns BlindReplaces.
func (*Expr) Blind() Blind { return BlindReplaces }

// Resolve folds the versions. A value wins over a concurrent deletion.
func (x *Expr) Resolve(versions []causal.Sibling) causal.Sibling {
	live := slices.Clone(alive(versions))
	if len(live) == 0 {
		return lastWriter(versions)
	}
	slices.SortFunc(live, func(a, b causal.Sibling) int {
		if c := a.Stamp.Compare(b.Stamp); c != 0 {
			return c
		}
		return a.Dot.Compare(b.Dot)
	})
	out := plain(live[0])
	for _, s := range live[1:] {
		out = x.decide(out, plain(s))
	}
	return out
}

// decide makes one version of two.
func (x *Expr) decide(a, b causal.Sibling) causal.Sibling {
	answer, _, err := x.program.Eval(map[string]any{
		"a.value": utf8Text(a.Value), "a.timestamp": a.Stamp.Time.Time(), "a.node": int64(a.Dot.Node),
		"b.value": utf8Text(b.Value), "b.timestamp": b.Stamp.Time.Time(), "b.node": int64(b.Dot.Node),
	})
	if err != nil {
		return b
	}
	switch v := answer.Value().(type) {
	case bool:
		if v {
			return a
		}
	case string:
		if len(v) <= exprValueBytesMax {
			b.Value, b.Expiry = []byte(v), latestExpiry([]causal.Sibling{a, b})
		}
	}
	return b
}

// exprValueBytesMax bounds what an expression makes of two values.
const exprValueBytesMax = kv.ValueBytesMax

// utf8Text returns the value as an expression sees it: CEL's strings are UTF-8.
func utf8Text(value []byte) string { return strings.ToValidUTF8(string(value), "\uFFFD") }

// errUnknownResolver is the error of a name that no resolver has.
func errUnknownResolver(name string, known []string) error {
	return kv.Errorf(kv.CodeBadRequest, "unknown resolver %q; the resolvers are %s", name, strings.Join(known, ", "))
}

var errNoResolver = errors.New("quorum: a resolver needs a name")

func errResolverTaken(name string) error {
	return fmt.Errorf("quorum: there is a resolver %q already", name)
}
