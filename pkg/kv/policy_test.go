package kv

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPolicyThatContradictsItselfIsRefused(t *testing.T) {
	prefix := []byte("user:")
	for _, test := range []struct {
		name   string
		policy Policy
		code   Code // "": valid
	}{
		{"prefix alone", Policy{Prefix: prefix}, ""},
		{"everything", Policy{Prefix: prefix, Default: LevelEventual, Quorum: Quorum{N: 3, R: 2, W: 2}, Resolver: ResolverSiblings}, ""},
		{"r without n", Policy{Prefix: prefix, Quorum: Quorum{R: 5}}, ""},
		{"no prefix", Policy{Default: LevelStrong}, CodeBadRequest},
		{"long prefix", Policy{Prefix: bytes.Repeat([]byte{'p'}, KeyBytesMax+1)}, CodeKeyTooLarge},
		{"unknown level", Policy{Prefix: prefix, Default: LevelLast + 1}, CodeUnknownConsistency},
		{"bounded as the default", Policy{Prefix: prefix, Default: LevelBounded}, CodeBadRequest},
		{"r above n", Policy{Prefix: prefix, Quorum: Quorum{N: 2, R: 3}}, CodeBadQuorum},
		{"w above n", Policy{Prefix: prefix, Quorum: Quorum{N: 2, W: 3}}, CodeBadQuorum},
		{"negative w", Policy{Prefix: prefix, Quorum: Quorum{W: -1}}, CodeBadQuorum},
		{"no name of a resolver", Policy{Prefix: prefix, Resolver: "New est"}, CodeBadRequest},
		{"expression", Policy{Prefix: prefix, Resolver: ResolverExpr, Expr: "true"}, ""},
		{"no expression", Policy{Prefix: prefix, Resolver: ResolverExpr}, CodeBadRequest},
		{"expression of another resolver", Policy{Prefix: prefix, Expr: "true"}, CodeBadRequest},
		{"long expression", Policy{Prefix: prefix, Resolver: ResolverExpr, Expr: strings.Repeat("1", ExprBytesMax+1)}, CodeBadRequest},
		{"ttl", Policy{Prefix: prefix, TTL: time.Hour}, ""},
		{"part of a millisecond", Policy{Prefix: prefix, TTL: 1500 * time.Microsecond}, CodeBadRequest},
		{"eternity", Policy{Prefix: prefix, TTL: TTLMax + time.Millisecond}, CodeBadRequest},
		{"past", Policy{Prefix: prefix, TTL: -time.Millisecond}, CodeBadRequest},
		{"read repair", Policy{Prefix: prefix, ReadRepair: RepairBlocking}, ""},
		{"unknown read repair", Policy{Prefix: prefix, ReadRepair: "never"}, CodeBadRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.code, CodeOf(test.policy.Validate()))
		})
	}
}
