package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes that people write with a unit: "256MiB", "1GiB", "64000".
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

// sizeUnits is ordered so that a longer suffix is tried before a shorter one that ends it ("MiB" before "B").
var sizeUnits = []struct {
	suffix string
	bytes  Size
}{
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"B", 1},
}

// ParseSize reads a whole number of bytes with an optional binary unit. Decimal units (MB) are refused rather than
// guessed at, because half the world means MiB by them.
func ParseSize(s string) (Size, error) {
	digits, unit := strings.TrimSpace(s), Size(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%q is no size: write a whole number of bytes, KiB, MiB, GiB or TiB, such as 256MiB", s)
	}
	return Size(n) * unit, nil
}

// String returns the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.suffix
		}
	}
	return "0B"
}

// Set implements pflag.Value.
func (s *Size) Set(text string) error {
	parsed, err := ParseSize(text)
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// Type implements pflag.Value.
func (s *Size) Type() string { return "size" }
