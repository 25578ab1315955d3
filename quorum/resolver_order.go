package quorum

import (
	"bytes"
	"cmp"
	"strings"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Extreme is the resolver by which the greatest of the values written is the key's, or the least, until the key is deleted.
// Values that are decimal numbers compare as such, exactly and of any length; they are below all other values, which compare
// by their bytes. A value is anything: what was written under another policy has its place in the order too.
type Extreme struct {
	// Least says that the least value wins.
	Least bool
}

// Name returns "max" or "min".
func (x Extreme) Name() string {
	if x.Least {
		return kv.ResolverMin
	}
	return kv.ResolverMax
}

// Resolve returns the greatest value, or the least.
func (x Extreme) Resolve(versions []causal.Sibling) causal.Sibling {
	return resolveJoin(versions, func(live []causal.Sibling) []byte {
		best := plain(live[0]).Value
		for _, s := range live[1:] {
			best = x.better(best, plain(s).Value)
		}
		return best
	})
}

// KeepsSiblings returns true.
func (Extreme) KeepsSiblings() bool { return true }

// Blind returns BlindFolds.
func (Extreme) Blind() Blind { return BlindFolds }

// Check accepts every value.
func (Extreme) Check([]byte, bool) error { return nil }

// Fold returns the greatest of the values, or the least.
func (x Extreme) Fold(f Fold) ([]byte, error) {
	best := f.Value
	for i := range f.Held {
		best = x.better(best, plain(f.Held[i]).Value)
	}
	return best, nil
}

func (x Extreme) better(a, b []byte) []byte {
	if c := compareValues(a, b); c < 0 && !x.Least || c > 0 && x.Least {
		return b
	}
	return a
}

// compareValues is a total order of values. Two spellings of one number are told apart by their bytes, so that replicas
// choose the same.
func compareValues(a, b []byte) int {
	x, isNumber := decimalOf(a)
	y, isNumberToo := decimalOf(b)
	switch {
	case isNumber && isNumberToo:
		return cmp.Or(x.compare(y), bytes.Compare(a, b))
	case isNumber:
		return -1
	case isNumberToo:
		return 1
	default:
		return bytes.Compare(a, b)
	}
}

// number is a decimal number: its sign, the digits before the point without leading zeros, and those behind it without
// trailing ones. It is compared as text, so that no length and no number of digits makes it inexact or slow.
type number struct {
	negative        bool
	whole, fraction string
}

// decimalOf reads an optional sign, digits, and optionally a point and digits. There is no exponent: a few bytes of it
// would stand for a number of any size.
func decimalOf(b []byte) (number, bool) {
	s := string(b)
	var n number
	if s != "" && (s[0] == '-' || s[0] == '+') {
		n.negative = s[0] == '-'
		s = s[1:]
	}
	whole, fraction, pointed := strings.Cut(s, ".")
	if !allDigits(whole) || pointed && !allDigits(fraction) {
		return number{}, false
	}
	n.whole, n.fraction = strings.TrimLeft(whole, "0"), strings.TrimRight(fraction, "0")
	if n.whole == "" && n.fraction == "" {
		n.negative = false
	}
	return n, true
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func (n number) compare(o number) int {
	if n.negative != o.negative {
		if n.negative {
			return -1
		}
		return 1
	}
	c := cmp.Or(cmp.Compare(len(n.whole), len(o.whole)), strings.Compare(n.whole, o.whole), strings.Compare(n.fraction, o.fraction))
	if n.negative {
		return -c
	}
	return c
}
