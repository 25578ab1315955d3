package api

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	// jsonOverheadFactor is how many bytes JSON may need for one byte of a value: \u0000.
	jsonOverheadFactor = 6
	// jsonOverheadBytes is room for the rest of the object: names, a key, white space.
	jsonOverheadBytes = 64 << 10
	// bodyChunkBytes is what is allocated at first for a body of unknown length, and bodyTrustBytes for one that claims
	// to be long: the claim costs the client nothing.
	bodyChunkBytes = 4 << 10
	bodyTrustBytes = 256 << 10
	// drainBytesMax is what is read and thrown away of the body of a request that is refused, so that a client that
	// cannot stop sending gets to read why.
	drainBytesMax = 16 << 20
)

// bodyBytesMax is the longest body of a request that carries one value as JSON.
func bodyBytesMax(l kv.Limits) int { return l.ValueBytesMax*jsonOverheadFactor + jsonOverheadBytes }

// readBody reads at most limit bytes. The returned slice is the caller's own.
func readBody(r *http.Request, limit int) ([]byte, *kv.Error) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, kv.Errorf(kv.CodeBadRequest, "content encoding %q is not supported; send the body as it is", encoding)
	}
	if r.ContentLength > int64(limit) {
		return nil, bodyTooLarge(limit)
	}
	size := bodyChunkBytes
	if r.ContentLength >= 0 {
		size = min(int(r.ContentLength)+1, bodyTrustBytes) // one more, so that the end is seen without growing
	}
	body := make([]byte, 0, size)
	for {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := r.Body.Read(body[len(body):min(cap(body), limit+1)])
		body = body[:len(body)+n]
		switch {
		case len(body) > limit:
			return nil, bodyTooLarge(limit)
		case errors.Is(err, io.EOF):
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, &kv.Error{Code: codeRequestTimeout, Detail: "the body did not arrive in time", Retryable: true}
		case err != nil:
			return nil, kv.Errorf(kv.CodeBadRequest, "the body ended early: %w", err)
		}
	}
}

func bodyTooLarge(limit int) *kv.Error {
	return kv.Errorf(kv.CodeValueTooLarge, "the body has more than %d bytes", limit)
}

// drain reads on for a bounded while. A client that waits for permission to send is not given it.
func drain(r *http.Request) {
	if r.ContentLength == 0 || r.Header.Get("Expect") != "" {
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, drainBytesMax)
}

// readValue returns the value that the body of a PUT holds: a JSON object's, or the raw bytes.
func readValue(r *http.Request, limits kv.Limits) ([]byte, *kv.Error) {
	form := mediaType(r.Header.Get("Content-Type"))
	limit := limits.ValueBytesMax
	if form != bodyRaw {
		limit = bodyBytesMax(limits)
	}
	body, err := readBody(r, limit)
	if err != nil {
		return nil, err
	}
	value := body
	if form == bodyJSON || form == bodyForm && looksLikeObject(body) {
		if value, err = decodeValue(body); err != nil {
			return nil, err
		}
	}
	if len(value) > limits.ValueBytesMax {
		return nil, kv.Errorf(kv.CodeValueTooLarge, "the value has %d bytes; the limit is %d", len(value), limits.ValueBytesMax)
	}
	return value, nil
}

// bodyKind is what a content type makes of a body.
type bodyKind uint8

const (
	bodyRaw  bodyKind = iota
	bodyJSON          // application/json
	bodyForm          // what curl -d says when nobody chose; JSON when it holds an object
)

func mediaType(contentType string) bodyKind {
	if contentType == "" {
		return bodyRaw
	}
	name, _, _ := strings.Cut(contentType, ";")
	name = strings.TrimSpace(name)
	switch {
	case strings.EqualFold(name, "application/json"):
		return bodyJSON
	case strings.EqualFold(name, "application/x-www-form-urlencoded"):
		return bodyForm
	default:
		return bodyRaw
	}
}

// looksLikeObject reports whether the first byte that is not white space opens a JSON object.
func looksLikeObject(body []byte) bool {
	i := skipSpace(body, 0)
	return i < len(body) && body[i] == '{'
}

// decodeValue reads {"value":…} or {"value":…,"encoding":"base64"}.
func decodeValue(body []byte) ([]byte, *kv.Error) {
	var fields [2][]byte
	if err := decodeStrings(body, []string{"value", "encoding"}, fields[:]); err != nil {
		return nil, err
	}
	if fields[0] == nil {
		return nil, kv.Errorf(kv.CodeBadRequest, `the JSON object has no "value"`)
	}
	return decodeEncoding(fields[0], fields[1])
}

// decodeEncoding undoes the encoding that a JSON object declares; nil declares none.
func decodeEncoding(value, encoding []byte) ([]byte, *kv.Error) {
	if encoding == nil {
		return value, nil
	}
	if string(encoding) != "base64" {
		return nil, kv.Errorf(kv.CodeBadRequest, `encoding %q is unknown; it is "base64", or is left out for text`, encoding)
	}
	decoded := make([]byte, base64.StdEncoding.DecodedLen(len(value)))
	n, err := base64.StdEncoding.Strict().Decode(decoded, value)
	if err != nil {
		return nil, kv.Errorf(kv.CodeBadRequest, "the value is not base64: %w", err)
	}
	return decoded[:n], nil
}
