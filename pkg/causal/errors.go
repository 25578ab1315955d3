package causal

import "errors"

var (
	// ErrClockSkew is returned when a remote reading is further ahead of the local wall clock than MaxOffset allows.
	// Following it would drag every clock of the cluster along with one that is wrong.
	ErrClockSkew = errors.New("causal: a clock is too far ahead of this node's")
	// ErrCorrupt is returned for bytes that no encoder of this package wrote.
	ErrCorrupt = errors.New("causal: malformed encoding")
	// ErrBadContext is returned for a context token that is damaged, foreign or belongs to another key.
	ErrBadContext = errors.New("causal: the context is not one that this key was answered with")
)
