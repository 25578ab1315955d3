package api

import (
	"net/http"

	"github.com/caprockdb/caprock/pkg/kv"
)

// live answers /livez: the process serves requests. Whether it can do anything useful is not liveness, and restarting a
// node because its peers are away would only make things worse.
func (x *exchange) live() {
	verbose, _, err := x.healthQuery("verbose")
	if err != nil {
		x.fail(err)
		return
	}
	x.answerHealth("ok", verbose)
}

// ready answers /readyz: this node can serve every level, or the one asked about.
func (x *exchange) ready() {
	verbose, level, err := x.healthQuery("verbose", "consistency")
	if err != nil {
		x.fail(err)
		return
	}
	if x.h.draining.Load() {
		x.fail(kv.Errorf(kv.CodeNotReady, "the node is shutting down"))
		return
	}
	if cause := x.h.deps.Backend.Ready(level); cause != nil {
		x.failHealth(cause, verbose)
		return
	}
	x.answerHealth("ok", verbose)
}

// health answers /health: 200 while the node can serve at least one level, "degraded" when it is not every one.
func (x *exchange) health() {
	verbose, _, err := x.healthQuery("verbose")
	if err != nil {
		x.fail(err)
		return
	}
	if x.h.draining.Load() {
		x.fail(kv.Errorf(kv.CodeNotReady, "the node is shutting down"))
		return
	}
	backend := x.h.deps.Backend
	cause := backend.Ready(kv.LevelUnset)
	if cause == nil {
		x.answerHealth("ok", verbose)
		return
	}
	for level := kv.LevelStrong; level <= kv.LevelLocal; level++ {
		if backend.Ready(level) == nil {
			x.answerHealth("degraded", true)
			return
		}
	}
	x.failHealth(cause, verbose)
}

// healthQuery reads the parameters of a health route. The level is LevelUnset where none is asked about.
func (x *exchange) healthQuery(names ...string) (verbose bool, level kv.Level, _ *kv.Error) {
	values, err := queryValues(x.r.URL.RawQuery, names...)
	if err != nil {
		return false, kv.LevelUnset, err
	}
	if name, given := values["consistency"]; given {
		parsed, err := kv.ParseLevel(name)
		if err != nil {
			return false, kv.LevelUnset, kv.AsError(err)
		}
		level = parsed
	}
	value, given := values["verbose"]
	switch {
	case !given || value == "false" || value == "0":
		return false, level, nil
	case value == "" || value == "true" || value == "1":
		return true, level, nil
	default:
		return false, level, kv.Errorf(kv.CodeBadRequest, "verbose=%q: it is given alone, or is true or false", value)
	}
}

// notReady makes the problem of a node that cannot serve.
func notReady(cause error) *kv.Error {
	err := *kv.AsError(cause)
	if err.Code == kv.CodeInternal {
		return kv.Errorf(kv.CodeNotReady, "%w", cause)
	}
	if StatusOf(err.Code) != http.StatusServiceUnavailable {
		err.Code = kv.CodeNotReady
	}
	return &err
}

// answerHealth answers 200; verbose adds each level and why it is not ready.
func (x *exchange) answerHealth(status string, verbose bool) {
	dst := append(x.body[:0], `{"status":`...)
	dst = appendText(dst, status)
	dst = append(dst, `,"node":`...)
	dst = appendSafeText(dst, x.h.deps.Backend.Self())
	if verbose {
		dst = x.appendLevels(dst)
	}
	x.body = append(dst, "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

// failHealth answers 503 with why.
func (x *exchange) failHealth(cause error, verbose bool) {
	var levels []byte
	if verbose {
		levels = x.appendLevels(nil)
	}
	x.failWith(notReady(cause), levels)
}

// appendLevels appends the member "levels", preceded by a comma: each level, and why it cannot be served.
func (x *exchange) appendLevels(dst []byte) []byte {
	dst = append(dst, `,"levels":{`...)
	for level := kv.LevelStrong; level <= kv.LevelLocal; level++ {
		if level > kv.LevelStrong {
			dst = append(dst, ',')
		}
		dst = x.appendLevel(dst, level)
	}
	return append(dst, '}')
}

func (x *exchange) appendLevel(dst []byte, level kv.Level) []byte {
	cause := x.h.deps.Backend.Ready(level)
	dst = appendText(dst, level.String())
	dst = append(dst, `:{"ready":`...)
	dst = appendBool(dst, cause == nil)
	if cause != nil {
		dst = append(dst, `,"why":`...)
		dst = appendSafeText(dst, cause.Error())
	}
	return append(dst, '}')
}
