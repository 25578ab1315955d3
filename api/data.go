package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

const dataMethods = "GET, HEAD, PUT, DELETE"

// data serves /kv/{key}.
func (x *exchange) data(rest string, encoded bool) {
	op := opOf(x.r.Method)
	if op == 0 {
		x.methodNotAllowed(dataMethods)
		return
	}
	req, p, err := x.parseData(op, rest, encoded)
	if err != nil {
		x.h.exec.refuse(p.level, op)
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(p.timeout)
	defer cancel()
	resp, err := x.h.exec.execute(ctx, req)
	switch {
	case err != nil:
		x.fail(err)
	case op.IsWrite():
		x.answerWrite(op, req.Key, &resp)
	default:
		x.answerRead(req.Key, &resp)
	}
}

// opOf returns the operation of a method of the data routes, 0 for any other method.
func opOf(method string) kv.Op {
	switch method {
	case http.MethodGet, http.MethodHead:
		return kv.OpGet
	case http.MethodPut:
		return kv.OpPut
	case http.MethodDelete:
		return kv.OpDelete
	default:
		return 0
	}
}

// parseData reads the whole request, the body last: what is refused for its header is refused without reading it.
// The parameters are returned with an error too, as far as they were read.
func (x *exchange) parseData(op kv.Op, rest string, encoded bool) (*kv.Request, params, *kv.Error) {
	var p params
	key, err := x.parseKey(rest, encoded)
	if err != nil {
		return nil, p, err
	}
	if err := x.h.parseParams(x.r.URL.RawQuery, op, &p); err != nil {
		return nil, p, err
	}
	if err := dataHeaders(x.r.Header, op, &p); err != nil {
		return nil, p, err
	}
	req := &kv.Request{
		Op: op, Level: p.level, Quorum: p.quorum, Condition: p.condition, Siblings: p.siblings, Sloppy: p.sloppy, Key: key, Context: p.context,
		ID: p.id, TTL: p.ttl, Fallback: p.fallback, Session: p.session, MaxStaleness: p.staleness,
	}
	if p.level != kv.LevelUnset {
		if err := req.Validate(x.h.cfg.Limits); err != nil {
			return nil, p, kv.AsError(err)
		}
	}
	if op == kv.OpPut {
		if req.Value, err = readValue(x.r, x.h.cfg.Limits); err != nil {
			return nil, p, err
		}
	}
	return req, p, nil
}

func (x *exchange) parseKey(rest string, encoded bool) ([]byte, *kv.Error) {
	key, err := pathKey(rest, encoded)
	if err != nil {
		return nil, kv.AsError(err)
	}
	return key, x.checkKey(key)
}

func (x *exchange) checkKey(key []byte) *kv.Error {
	limit := x.h.cfg.Limits.KeyBytesMax
	switch {
	case len(key) == 0:
		return kv.Errorf(kv.CodeBadRequest, "the key is empty; a key has 1 to %d bytes", limit)
	case len(key) > limit:
		return kv.Errorf(kv.CodeKeyTooLarge, "the key has %d bytes; the limit is %d", len(key), limit)
	}
	return nil
}

// dataHeaders reads what the headers of a data request ask for.
func dataHeaders(h http.Header, op kv.Op, p *params) *kv.Error {
	if sessions := h["Caprock-Session"]; len(sessions) > 1 || len(sessions) == 1 && p.session != nil {
		return kv.Errorf(kv.CodeBadRequest, "the session is given more than once")
	} else if len(sessions) == 1 {
		if err := parseSession(sessions[0], &p.session); err != nil {
			return err
		}
	}
	tokens := h["Caprock-Context"]
	if !op.IsWrite() {
		if len(tokens) > 0 {
			return kv.Errorf(kv.CodeBadRequest, "Caprock-Context means nothing on a read")
		}
		if len(h["Idempotency-Key"]) > 0 {
			return kv.Errorf(kv.CodeBadRequest, "Idempotency-Key names a write; it means nothing on a read")
		}
		return nil
	}
	if err := operationID(h["Idempotency-Key"], p); err != nil {
		return err
	}
	if len(tokens) > 1 || len(tokens) == 1 && p.context != nil {
		return kv.Errorf(kv.CodeBadRequest, "the context is given more than once")
	}
	if len(tokens) == 1 {
		if err := parseContext(tokens[0], &p.context); err != nil {
			return err
		}
	}
	return writeCondition(h, p)
}

// answerWrite answers a PUT or DELETE that succeeded.
func (x *exchange) answerWrite(op kv.Op, key []byte, resp *kv.Response) {
	x.setDataHeaders(resp, tagOf(resp))
	x.body = appendWritten(x.body[:0], op, key, resp)
	x.send(http.StatusOK, contentJSON)
}

// appendWritten appends the JSON answer of a write that succeeded.
func appendWritten(dst []byte, op kv.Op, key []byte, resp *kv.Response) []byte {
	dst = appendBytes(append(dst, '{'), "key", "key_encoding", key)
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, resp.Version, 10)
	dst = append(dst, `,"context":`...)
	dst = appendContext(dst, resp.Context)
	dst = appendSession(dst, resp.Session)
	dst = appendTimestamp(dst, resp)
	dst = append(dst, `,"consistency":`...)
	dst = appendText(dst, resp.Level.String())
	dst = append(dst, `,"acks":`...)
	dst = strconv.AppendInt(dst, int64(resp.Acks), 10)
	if resp.Hinted > 0 {
		dst = append(dst, `,"hinted":`...)
		dst = strconv.AppendInt(dst, int64(resp.Hinted), 10)
	}
	dst = append(dst, `,"outcome":`...)
	dst = appendText(dst, resp.Outcome.String())
	if op == kv.OpDelete {
		dst = append(dst, `,"found":`...)
		dst = appendBool(dst, resp.Found)
	}
	return append(dst, "}\n"...)
}

// answerRead answers a GET or HEAD.
func (x *exchange) answerRead(key []byte, resp *kv.Response) {
	h := x.w.Header()
	h["Cache-Control"] = headerNoCache
	h["Vary"] = headerAccept
	if !resp.Found && len(resp.Siblings) == 0 {
		// The context still goes out: with it a later write covers the tombstone that made the key absent.
		x.setDataHeaders(resp, "")
		x.fail(kv.Errorf(kv.CodeKeyNotFound, "the key does not exist"))
		return
	}
	tag := tagOf(resp)
	if err := readMiss(x.r.Header, tag, resp); err != nil {
		x.fail(err)
		return
	}
	x.setDataHeaders(resp, tag)
	x.setReadHeaders(resp)
	switch {
	case notModified(x.r.Header, tag):
		x.status = http.StatusNotModified
		x.w.WriteHeader(x.status)
	case len(resp.Siblings) > 0:
		x.body = x.appendSiblings(x.body[:0], key, resp)
		x.send(http.StatusMultipleChoices, contentJSON)
	case acceptsRaw(x.r.Header.Get("Accept")):
		x.body = append(x.body[:0], resp.Value...)
		x.send(http.StatusOK, contentRaw)
	default:
		x.body = appendValue(x.body[:0], key, resp)
		x.send(http.StatusOK, contentJSON)
	}
}

// appendValue appends the JSON answer of a read that found one value.
func appendValue(dst, key []byte, resp *kv.Response) []byte {
	dst = slices.Grow(dst, len(key)+len(resp.Value)+256)
	dst = appendBytes(append(dst, '{'), "key", "key_encoding", key)
	dst = appendBytes(append(dst, ','), "value", "encoding", resp.Value)
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, resp.Version, 10)
	dst = append(dst, `,"context":`...)
	dst = appendContext(dst, resp.Context)
	dst = appendSession(dst, resp.Session)
	dst = appendTimestamp(dst, resp)
	dst = append(dst, `,"consistency":`...)
	dst = appendText(dst, resp.Level.String())
	dst = append(dst, `,"found":true,"settled":`...)
	dst = appendBool(dst, resp.Settled)
	if resp.Concurrent > 1 {
		dst = append(dst, `,"siblings":`...)
		dst = strconv.AppendInt(dst, int64(resp.Concurrent), 10)
	}
	return append(appendStaleness(dst, resp), "}\n"...)
}

// appendSiblings appends the JSON answer of a read that found concurrent versions.
func (x *exchange) appendSiblings(dst, key []byte, resp *kv.Response) []byte {
	dst = appendBytes(append(dst, '{'), "key", "key_encoding", key)
	dst = x.appendSiblingList(append(dst, ','), resp.Siblings)
	dst = append(dst, `,"context":`...)
	dst = appendContext(dst, resp.Context)
	dst = appendSession(dst, resp.Session)
	return append(appendStaleness(dst, resp), "}\n"...)
}

// appendStaleness appends how stale an answer of level bounded is at most.
func appendStaleness(dst []byte, resp *kv.Response) []byte {
	if resp.Level != kv.LevelBounded {
		return dst
	}
	return strconv.AppendInt(append(dst, `,"staleness_bound_ms":`...), resp.StalenessMillis(), 10)
}

// appendSession appends the token for the session's next operation, where there is one.
func appendSession(dst, token []byte) []byte {
	if len(token) == 0 {
		return dst
	}
	return appendContext(append(dst, `,"session":`...), token)
}

// appendSiblingList appends the member that holds concurrent versions.
func (x *exchange) appendSiblingList(dst []byte, siblings []kv.Sibling) []byte {
	dst = append(dst, `"siblings":[`...)
	for i := range siblings {
		s := &siblings[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		if s.Deleted {
			dst = append(dst, `{"value":null`...)
		} else {
			dst = appendBytes(append(dst, '{'), "value", "encoding", s.Value)
		}
		dst = append(dst, `,"timestamp":`...)
		dst = appendTime(dst, s.Timestamp)
		dst = append(dst, `,"node":`...)
		dst = appendSafeText(dst, x.h.deps.Backend.NodeName(s.Node))
		if s.Deleted {
			dst = append(dst, `,"deleted":true`...)
		}
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

// appendTimestamp appends the version's time, where it has one.
func appendTimestamp(dst []byte, resp *kv.Response) []byte {
	if resp.Timestamp.IsZero() {
		return dst
	}
	dst = append(dst, `,"timestamp":`...)
	return appendTime(dst, resp.Timestamp)
}

// setDataHeaders sets the headers of every data answer. The values share one backing array.
func (x *exchange) setDataHeaders(resp *kv.Response, tag string) {
	h := x.w.Header()
	values := make([]string, 0, 8)
	set := func(name, value string) {
		if value == "" {
			return
		}
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	backend := x.h.deps.Backend
	set("ETag", tag)
	set("Caprock-Version", strconv.FormatUint(resp.Version, 10))
	set("Caprock-Context", contextText(resp.Context))
	set("Caprock-Session", contextText(resp.Session))
	set("Caprock-Consistency", resp.Level.String())
	if resp.Coordinator != kv.NoNode {
		set("Caprock-Coordinator", backend.NodeName(resp.Coordinator))
	}
	set("Caprock-Replicas", replicaNames(backend, resp.Replicas))
	if resp.Level == kv.LevelBounded {
		set(headerStaleness, strconv.FormatInt(resp.StalenessMillis(), 10))
	}
}

// headerStaleness says how many milliseconds an answer of level bounded is stale at most.
const headerStaleness = "Caprock-Staleness-Bound-Ms"

// setReadHeaders sets what JSON says in its body, so that a raw answer and a HEAD say it too.
func (x *exchange) setReadHeaders(resp *kv.Response) {
	h := x.w.Header()
	if !resp.Timestamp.IsZero() {
		h["Caprock-Timestamp"] = []string{resp.Timestamp.UTC().Format(timeLayout)}
	}
	h["Caprock-Settled"] = []string{strconv.FormatBool(resp.Settled)}
	if resp.Concurrent > 1 {
		h["Caprock-Siblings"] = []string{strconv.Itoa(resp.Concurrent)}
	}
}

// replicaNames joins the names of the replicas with commas. A member whose name is not known is named by its id.
func replicaNames(backend Backend, replicas []kv.NodeID) string {
	var names strings.Builder
	for i, id := range replicas {
		if i > 0 {
			names.WriteByte(',')
		}
		if name := backend.NodeName(id); name != "" {
			names.WriteString(name)
		} else {
			names.WriteString(strconv.FormatUint(uint64(id), 10))
		}
	}
	return names.String()
}
