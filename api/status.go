package api

import (
	"net/http"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The codes that only HTTP can answer with: they are about the route, never about a key.
const (
	// codeRouteNotFound: no such route. It is apart from kv.CodeKeyNotFound, so that a mistyped path is not mistaken
	// for an absent key.
	codeRouteNotFound kv.Code = "ROUTE_NOT_FOUND"
	// codeMethodNotAllowed: the route exists, but not with this method.
	codeMethodNotAllowed kv.Code = "METHOD_NOT_ALLOWED"
	// codeRequestTimeout: the client took too long to send its request.
	codeRequestTimeout kv.Code = "REQUEST_TIMEOUT"
	// codePolicyNotFound: the prefix has no policy of its own.
	codePolicyNotFound kv.Code = "POLICY_NOT_FOUND"
)

// StatusOf returns the HTTP status that answers the code. It is the public table of codes and statuses.
func StatusOf(code kv.Code) int {
	switch code {
	case kv.CodeBadRequest, kv.CodeUnknownConsistency, kv.CodeBadQuorum, kv.CodeConditionNeedsStrong,
		kv.CodeCrossPartition:
		return http.StatusBadRequest
	case kv.CodeKeyNotFound, kv.CodeOperationNotFound, codeRouteNotFound, codePolicyNotFound:
		return http.StatusNotFound
	case codeMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case codeRequestTimeout:
		return http.StatusRequestTimeout
	case kv.CodeLevelFenced, kv.CodeSiblings:
		return http.StatusConflict
	case kv.CodeVersionMismatch:
		return http.StatusPreconditionFailed
	case kv.CodeValueTooLarge, kv.CodeKeyTooLarge:
		return http.StatusRequestEntityTooLarge
	case kv.CodeOverloaded:
		return http.StatusTooManyRequests
	case kv.CodeNoLeader, kv.CodeQuorumUnavailable, kv.CodeNotReady:
		return http.StatusServiceUnavailable
	case kv.CodeDeadlineExceeded:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// titleOf returns the one-line meaning of the code, the same for every occurrence.
func titleOf(code kv.Code) string {
	switch code {
	case kv.CodeBadRequest:
		return "The request is malformed or asks for what cannot be honoured"
	case kv.CodeUnknownConsistency:
		return "Unknown consistency level"
	case kv.CodeBadQuorum:
		return "The quorum is out of range"
	case kv.CodeConditionNeedsStrong:
		return "A condition needs level strong"
	case kv.CodeCrossPartition:
		return "The keys do not share a partition"
	case kv.CodeKeyNotFound:
		return "Key not found"
	case kv.CodeOperationNotFound:
		return "Operation not found"
	case kv.CodeLevelFenced:
		return "The prefix's policy refuses this level"
	case kv.CodeSiblings:
		return "The key has concurrent versions"
	case kv.CodeVersionMismatch:
		return "The condition does not hold"
	case kv.CodeValueTooLarge:
		return "Value too large"
	case kv.CodeKeyTooLarge:
		return "Key too large"
	case kv.CodeOverloaded:
		return "Overloaded"
	case kv.CodeNoLeader:
		return "The partition has no leader"
	case kv.CodeQuorumUnavailable:
		return "Not enough replicas"
	case kv.CodeNotReady:
		return "Not ready"
	case kv.CodeDeadlineExceeded:
		return "Deadline exceeded"
	case codeRouteNotFound:
		return "No such route"
	case codeMethodNotAllowed:
		return "Method not allowed"
	case codeRequestTimeout:
		return "The request did not arrive in time"
	case codePolicyNotFound:
		return "The prefix has no policy"
	default:
		return "Internal error"
	}
}
