package client

import (
	"errors"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The exit codes of the command line. They are part of the public contract.
const (
	ExitOK           = 0
	ExitError        = 1
	ExitUsage        = 2
	ExitNotFound     = 3
	ExitConflict     = 4
	ExitUnavailable  = 5
	ExitUnauthorised = 6
	ExitUnknown      = 7
)

// ExitCode returns the exit code of a command that failed with err. An unknown outcome comes before the reason for it: a
// script that may have to repeat a write must learn that it may already have happened.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	e, ok := errors.AsType[*kv.Error](err)
	switch {
	case !ok:
		return ExitError
	case e.Outcome == kv.OutcomeUnknown:
		return ExitUnknown
	}
	switch e.Code {
	case kv.CodeBadRequest, kv.CodeUnknownConsistency, kv.CodeBadQuorum, kv.CodeConditionNeedsStrong, kv.CodeCrossPartition:
		return ExitUsage
	case kv.CodeKeyNotFound, kv.CodeOperationNotFound:
		return ExitNotFound
	case kv.CodeVersionMismatch, kv.CodeLevelFenced, kv.CodeSiblings:
		return ExitConflict
	case kv.CodeOverloaded, kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady, kv.CodeDeadlineExceeded:
		return ExitUnavailable
	default:
		return ExitError
	}
}

// IsNotFound reports whether err says that the key does not exist.
func IsNotFound(err error) bool { return kv.CodeOf(err) == kv.CodeKeyNotFound }
