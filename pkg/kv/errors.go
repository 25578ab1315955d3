package kv

import (
	"errors"
	"fmt"
	"time"
)

// Code names a kind of failure. Codes are part of the public contract: HTTP answers, gRPC details and the CLI spell
// them alike.
type Code string

// The codes of the public contract.
const (
	CodeBadRequest           Code = "BAD_REQUEST"
	CodeUnknownConsistency   Code = "UNKNOWN_CONSISTENCY"
	CodeBadQuorum            Code = "BAD_QUORUM"
	CodeConditionNeedsStrong Code = "CONDITION_NEEDS_STRONG"
	CodeCrossPartition       Code = "CROSS_PARTITION"
	CodeKeyNotFound          Code = "KEY_NOT_FOUND"
	CodeOperationNotFound    Code = "OPERATION_NOT_FOUND"
	CodeLevelFenced          Code = "LEVEL_FENCED"
	CodeSiblings             Code = "SIBLINGS"
	CodeVersionMismatch      Code = "VERSION_MISMATCH"
	CodeValueTooLarge        Code = "VALUE_TOO_LARGE"
	CodeKeyTooLarge          Code = "KEY_TOO_LARGE"
	CodeOverloaded           Code = "OVERLOADED"
	CodeNoLeader             Code = "NO_LEADER"
	CodeQuorumUnavailable    Code = "QUORUM_UNAVAILABLE"
	CodeNotReady             Code = "NOT_READY"
	CodeDeadlineExceeded     Code = "DEADLINE_EXCEEDED"
	CodeInternal             Code = "INTERNAL"
)

// Error is a failed request: what went wrong, and what is known about its effect.
type Error struct {
	Code   Code
	Detail string
	// Outcome is OutcomeNotApplied unless the failing layer knows that something was sent.
	Outcome   Outcome
	Retryable bool
	// Required, Alive and Acked count replicas, where a quorum was not met.
	Required, Alive, Acked int
	// Lag is how far what could be read is behind what was asked for; zero says nothing.
	Lag time.Duration
	// Staleness is the age of what the replica that was asked could still prove, at level bounded; zero: it could prove nothing.
	Staleness time.Duration
	// CurrentVersion is the key's version, where a condition missed.
	CurrentVersion uint64
	// Leader is the name of the node that leads the partition, where it is known and is not the one that answered.
	Leader string
	// RetryAfter is how long to wait before trying again; zero says nothing.
	RetryAfter time.Duration

	cause error
}

// Errorf returns an Error of the code whose outcome is OutcomeNotApplied. Retryable follows from the code; error
// operands wrapped with %w stay reachable by errors.Is and errors.As.
func Errorf(code Code, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	e := &Error{Code: code, Detail: wrapped.Error(), Retryable: code.retryable(), cause: errors.Unwrap(wrapped)}
	if _, several := wrapped.(interface{ Unwrap() []error }); several {
		e.cause = wrapped // errors.Unwrap knows only of errors that wrap one
	}
	return e
}

// retryable reports whether the same request may succeed later without being changed.
func (c Code) retryable() bool {
	switch c {
	case CodeOverloaded, CodeNoLeader, CodeQuorumUnavailable, CodeNotReady, CodeDeadlineExceeded:
		return true
	default:
		return false
	}
}

// Error returns the code and the detail.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

// Unwrap returns the error that caused this one, if any.
func (e *Error) Unwrap() error { return e.cause }

// WithOutcome returns a copy of the error with the outcome.
func (e *Error) WithOutcome(o Outcome) *Error {
	out := *e
	out.Outcome = o
	return &out
}

// AsError finds the Error in err's chain. Any other error becomes a CodeInternal one whose outcome is
// OutcomeUnknown, because an error that nobody classified proves nothing about what happened. nil stays nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: CodeInternal, Detail: err.Error(), Outcome: OutcomeUnknown, cause: err}
}

// CodeOf returns the code of err, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return AsError(err).Code
}
