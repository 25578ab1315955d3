// Package invariant holds assertions: statements that are true unless Caprock itself has a bug.
//
// It owns nothing and depends on nothing. A failed assertion panics, because going on with a broken invariant is how
// acknowledged writes get lost. What the world may do (a full disk, a slow peer, a bad request) is never asserted; it
// is an error.
package invariant

import "fmt"

// Check panics with the formatted message unless ok holds.
func Check(ok bool, format string, args ...any) {
	if !ok {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}
