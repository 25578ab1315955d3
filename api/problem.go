package api

import (
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	contentJSON    = "application/json"
	contentRaw     = "application/octet-stream"
	contentProblem = "application/problem+json"

	// problemBase is where the reference explains each code.
	problemBase = "https://github.com/caprockdb/caprock/blob/main/docs/api.md#"
)

// fail answers the exchange with a problem document (RFC 9457).
func (x *exchange) fail(err *kv.Error) { x.failWith(err, nil) }

// failWith is fail with more members, which are JSON that begins with a comma.
func (x *exchange) failWith(err *kv.Error, members []byte) {
	drain(x.r)
	status := StatusOf(err.Code)
	if status == http.StatusInternalServerError {
		x.h.deps.Logger.Error("request failed", slog.String("request_id", x.id), slog.String("error", err.Error()))
	}
	if seconds := retryAfterSeconds(err); seconds > 0 {
		x.w.Header()["Retry-After"] = []string{strconv.Itoa(seconds)}
	}
	x.body = appendProblem(x.body[:0], status, x.id, err, members)
	x.send(status, contentProblem)
}

// retryAfterSeconds returns the wait to advise, in whole seconds, 0 for none. An answer to overload always advises one.
func retryAfterSeconds(err *kv.Error) int {
	if err.RetryAfter <= 0 && err.Code != kv.CodeOverloaded {
		return 0
	}
	return max(1, int((err.RetryAfter+time.Second-1)/time.Second))
}

// appendProblem appends the problem document of the error.
func appendProblem(dst []byte, status int, requestID string, err *kv.Error, members []byte) []byte {
	dst = append(dst, `{"type":`...)
	dst = appendText(dst, problemBase+strings.ToLower(string(err.Code)))
	dst = append(dst, `,"title":`...)
	dst = appendText(dst, titleOf(err.Code))
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, `,"code":`...)
	dst = appendText(dst, string(err.Code))
	dst = append(dst, `,"detail":`...)
	dst = appendSafeText(dst, err.Detail)
	dst = append(dst, `,"outcome":`...)
	dst = appendText(dst, err.Outcome.String())
	dst = append(dst, `,"retryable":`...)
	dst = appendBool(dst, err.Retryable)
	dst = append(dst, `,"request_id":`...)
	dst = appendSafeText(dst, requestID)
	dst = append(appendProblemFacts(dst, err), members...)
	return append(dst, "}\n"...)
}

// appendProblemFacts appends what the code is about. The facts that belong to the code are there even when they are
// zero; any others only when they say something.
func appendProblemFacts(dst []byte, err *kv.Error) []byte {
	quorum := err.Code == kv.CodeQuorumUnavailable
	dst = appendCount(dst, `,"required":`, err.Required, quorum)
	dst = appendCount(dst, `,"alive":`, err.Alive, quorum)
	dst = appendCount(dst, `,"acked":`, err.Acked, quorum)
	if err.Code == kv.CodeVersionMismatch || err.CurrentVersion != 0 {
		dst = append(dst, `,"current_version":`...)
		dst = strconv.AppendUint(dst, err.CurrentVersion, 10)
	}
	if err.Code == kv.CodeKeyNotFound {
		dst = append(dst, `,"found":false`...)
	}
	if err.Lag > 0 {
		dst = append(dst, `,"lag":`...)
		dst = strconv.AppendFloat(dst, err.Lag.Seconds(), 'f', 3, 64)
	}
	if err.Staleness > 0 {
		dst = append(dst, `,"staleness_ms":`...)
		dst = strconv.AppendInt(dst, err.Staleness.Milliseconds(), 10)
	}
	if err.Leader != "" {
		dst = append(dst, `,"leader":`...)
		dst = appendSafeText(dst, err.Leader)
	}
	return dst
}

func appendCount(dst []byte, member string, count int, always bool) []byte {
	if count == 0 && !always {
		return dst
	}
	dst = append(dst, member...)
	return strconv.AppendInt(dst, int64(count), 10)
}
