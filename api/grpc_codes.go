package api

import (
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/caprockdb/caprock/api/kvpb"
	"github.com/caprockdb/caprock/pkg/kv"
)

// errorDomain is the domain of the ErrorInfo details.
const errorDomain = "caprock"

// GRPCCodeOf returns the canonical gRPC code that answers the code. It is the public table of codes and gRPC codes; that of HTTP
// statuses is StatusOf, that of exit codes the client's ExitCode.
func GRPCCodeOf(code kv.Code) codes.Code {
	switch code {
	case kv.CodeBadRequest, kv.CodeUnknownConsistency, kv.CodeBadQuorum, kv.CodeConditionNeedsStrong,
		kv.CodeCrossPartition, kv.CodeValueTooLarge, kv.CodeKeyTooLarge:
		return codes.InvalidArgument
	case kv.CodeKeyNotFound, kv.CodeOperationNotFound:
		return codes.NotFound
	case kv.CodeLevelFenced, kv.CodeVersionMismatch:
		return codes.FailedPrecondition
	case kv.CodeSiblings:
		return codes.Aborted
	case kv.CodeOverloaded:
		return codes.ResourceExhausted
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady:
		return codes.Unavailable
	case kv.CodeDeadlineExceeded:
		return codes.DeadlineExceeded
	default:
		return codes.Internal
	}
}

// statusOf returns the error of a unary call: the canonical code, an ErrorInfo whose reason is ours, and the whole error as a detail.
func statusOf(e *kv.Error) error {
	s := status.New(GRPCCodeOf(e.Code), e.Detail)
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: string(e.Code), Domain: errorDomain, Metadata: map[string]string{
			"outcome": e.Outcome.String(), "retryable": strconv.FormatBool(e.Retryable),
		}},
		&kvpb.Error{
			Code: string(e.Code), Detail: e.Detail, Outcome: kvpb.Outcome(e.Outcome) + kvpb.Outcome_OUTCOME_NOT_APPLIED, Retryable: e.Retryable,
			Required: uint32(e.Required), Alive: uint32(e.Alive), Acked: uint32(e.Acked), CurrentVersion: e.CurrentVersion,
			Leader: e.Leader, RetryAfterMs: uint32(e.RetryAfter.Milliseconds()),
			LagMs: uint32(min(e.Lag.Milliseconds(), 1<<31)), StalenessMs: uint32(min(e.Staleness.Milliseconds(), 1<<31)),
		},
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	detailed, err := s.WithDetails(details...)
	if err != nil { // the messages above can always be marshalled; the bare status is true anyway
		return s.Err()
	}
	return detailed.Err()
}
