package api

import (
	"net/http"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The compatibility routes: thin adapters for clients of an older interface. All of them work at level strong.

// compatSet serves POST /api/set {"key","value"}.
func (x *exchange) compatSet() {
	if _, err := queryValues(x.r.URL.RawQuery); err != nil {
		x.refuseCompat(kv.OpPut, err)
		return
	}
	body, err := readBody(x.r, bodyBytesMax(x.h.cfg.Limits))
	if err != nil {
		x.refuseCompat(kv.OpPut, err)
		return
	}
	var fields [3][]byte
	if err := decodeStrings(body, []string{"key", "value", "encoding"}, fields[:]); err != nil {
		x.refuseCompat(kv.OpPut, err)
		return
	}
	key, value := fields[0], fields[1]
	if key == nil || value == nil {
		x.refuseCompat(kv.OpPut, kv.Errorf(kv.CodeBadRequest, `the JSON object needs a "key" and a "value"`))
		return
	}
	if value, err = decodeEncoding(value, fields[2]); err != nil {
		x.refuseCompat(kv.OpPut, err)
		return
	}
	x.compatExecute(&kv.Request{Op: kv.OpPut, Key: key, Value: value})
}

// compatGet serves GET /api/get?key=.
func (x *exchange) compatGet() {
	if key, ok := x.compatKey(kv.OpGet); ok {
		x.compatExecute(&kv.Request{Op: kv.OpGet, Siblings: kv.SiblingsResolve, Key: key})
	}
}

// compatDelete serves DELETE /api/delete?key=.
func (x *exchange) compatDelete() {
	if key, ok := x.compatKey(kv.OpDelete); ok {
		x.compatExecute(&kv.Request{Op: kv.OpDelete, Key: key})
	}
}

// compatKey reads the key from the query, or answers why it cannot.
func (x *exchange) compatKey(op kv.Op) ([]byte, bool) {
	values, err := queryValues(x.r.URL.RawQuery, "key")
	if err != nil {
		x.refuseCompat(op, err)
		return nil, false
	}
	return []byte(values["key"]), true
}

func (x *exchange) refuseCompat(op kv.Op, err *kv.Error) {
	x.h.exec.refuse(kv.LevelStrong, op)
	x.fail(err)
}

// compatExecute runs the request and answers in the older interface's shape.
func (x *exchange) compatExecute(req *kv.Request) {
	req.Level = kv.LevelStrong
	ctx, cancel := x.deadline(0)
	defer cancel()
	op := req.Op
	resp, err := x.h.exec.execute(ctx, req)
	if err == nil && op == kv.OpGet && !resp.Found {
		err = kv.Errorf(kv.CodeKeyNotFound, "the key does not exist")
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.setDataHeaders(&resp, tagOf(&resp))
	dst := x.body[:0]
	if op == kv.OpGet {
		dst = appendBytes(append(dst, '{'), "value", "encoding", resp.Value)
		dst = append(dst, `,"found":true}`...)
	} else {
		dst = append(dst, `{"success":true}`...)
	}
	x.body = append(dst, '\n')
	x.send(http.StatusOK, contentJSON)
}
