package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// operationID reads the header Idempotency-Key. Its text is the whole id: a session with one operation.
func operationID(lines []string, p *params) *kv.Error {
	if len(lines) == 0 {
		return nil
	}
	if len(lines) > 1 {
		return kv.Errorf(kv.CodeBadRequest, "Idempotency-Key is given more than once")
	}
	if !kv.IsOpName(lines[0]) {
		return kv.Errorf(kv.CodeBadRequest, "an Idempotency-Key is 1 to %d printable ASCII characters", kv.OpSessionBytesMax)
	}
	p.id = kv.OpID{Session: []byte(lines[0]), Required: true}
	return nil
}

// operation serves GET /ops/{id}?key=: what became of a write that had an Idempotency-Key.
func (x *exchange) operation(rest string, encoded bool) {
	if !allows("GET, HEAD", x.r.Method) {
		x.methodNotAllowed("GET, HEAD")
		return
	}
	req, timeout, err := x.parseOperation(rest, encoded)
	if err != nil {
		x.h.exec.refuse(kv.LevelStrong, kv.OpInquire)
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(timeout)
	defer cancel()
	resp, err := x.h.exec.execute(ctx, req)
	if err != nil {
		x.fail(err)
		return
	}
	x.setDataHeaders(&resp, "")
	x.w.Header()["Cache-Control"] = headerNoCache
	dst := append(x.body[:0], `{"id":`...)
	dst = appendText(dst, req.ID.Session)
	dst = appendBytes(append(dst, ','), "key", "key_encoding", req.Key)
	dst = append(dst, `,"outcome":`...)
	dst = appendText(dst, resp.Outcome.String())
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, resp.Version, 10)
	dst = append(dst, `,"found":`...)
	dst = appendBool(dst, resp.Found)
	dst = appendTimestamp(dst, &resp)
	x.body = append(dst, "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

func (x *exchange) parseOperation(rest string, encoded bool) (*kv.Request, time.Duration, *kv.Error) {
	id, err := pathKey(rest, encoded)
	if err != nil {
		return nil, 0, kv.AsError(err)
	}
	if !kv.IsOpName(string(id)) {
		return nil, 0, kv.Errorf(kv.CodeBadRequest, "an operation id is 1 to %d printable ASCII characters", kv.OpSessionBytesMax)
	}
	values, bad := queryValues(x.r.URL.RawQuery, "key", "timeout")
	if bad != nil {
		return nil, 0, bad
	}
	key, given := values["key"]
	if !given {
		return nil, 0, kv.Errorf(kv.CodeBadRequest, "the parameter key is missing: the partition of the key that was to be written knows the operation")
	}
	if err := x.checkKey([]byte(key)); err != nil {
		return nil, 0, err
	}
	var p params
	if timeout, given := values["timeout"]; given {
		if err := parseTimeout(&x.h.cfg, &p, timeout); err != nil {
			return nil, 0, err
		}
	}
	return &kv.Request{Op: kv.OpInquire, Level: kv.LevelStrong, Key: []byte(key), ID: kv.OpID{Session: id}}, p.timeout, nil
}
