package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// adminBodyBytesMax bounds what an administrative request may send.
const adminBodyBytesMax = 1 << 20

// document answers with one of the backend's documents.
func (x *exchange) document(name string) {
	if _, err := queryValues(x.r.URL.RawQuery); err != nil {
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(0)
	defer cancel()
	doc, err := x.h.deps.Backend.Document(ctx, name)
	if err != nil {
		x.fail(classify(kv.OpGet, err))
		return
	}
	if doc == nil {
		x.notFound()
		return
	}
	x.sendJSON(doc)
}

// partition serves /admin/partitions/{id} and /admin/partitions/{id}/check.
func (x *exchange) partition(id string) {
	document, methods := DocPartition, "GET, HEAD"
	if number, isCheck := strings.CutSuffix(id, "/check"); isCheck {
		id, document, methods = number, DocCheck, "POST"
	}
	if !allows(methods, x.r.Method) {
		x.methodNotAllowed(methods)
		return
	}
	if _, err := strconv.ParseUint(id, 10, 16); err != nil || !isDigits(id) {
		x.notFound()
		return
	}
	x.document(document + "/" + id)
}

// sendJSON answers 200 with what encoding/json makes of the document. Administration can afford reflection.
func (x *exchange) sendJSON(doc any) {
	body, err := json.Marshal(doc)
	if err != nil {
		x.fail(kv.AsError(err))
		return
	}
	x.body = append(body, '\n')
	x.send(http.StatusOK, contentJSON)
}

// faults serves /admin/faults, which does not exist on a node without the injector: no method may tell otherwise.
func (x *exchange) faults() {
	faults := x.h.deps.Backend.Faults()
	if faults == nil {
		x.notFound()
		return
	}
	switch x.r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		body, err := readBody(x.r, adminBodyBytesMax)
		if err != nil {
			x.fail(err)
			return
		}
		if !json.Valid(body) {
			x.fail(kv.Errorf(kv.CodeBadRequest, "the rules are not valid JSON"))
			return
		}
		if err := faults.Set(body); err != nil {
			x.fail(asBadRequest(err))
			return
		}
	case http.MethodDelete:
		faults.Clear()
	default:
		x.methodNotAllowed("GET, HEAD, POST, DELETE")
		return
	}
	x.body = append(append(x.body[:0], faults.Rules()...), '\n')
	x.send(http.StatusOK, contentJSON)
}

// asBadRequest gives an error that nobody classified the code of a malformed request.
func asBadRequest(err error) *kv.Error {
	if failure := kv.AsError(err); failure.Code != kv.CodeInternal {
		return failure
	}
	return kv.Errorf(kv.CodeBadRequest, "%w", err)
}
