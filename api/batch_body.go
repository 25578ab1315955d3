package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// batchParams is what the query of POST /batch asks for.
type batchParams struct {
	params
	atomic bool
}

// parseBatch reads the whole request. The parameters are returned with an error too, as far as they were read.
func (x *exchange) parseBatch() (items []kv.Request, id kv.OpID, p batchParams, _ *kv.Error) {
	values, err := queryValues(x.r.URL.RawQuery, "consistency", "atomic", "timeout", "max-staleness")
	if err != nil {
		return nil, id, p, err
	}
	if level, given := values["consistency"]; given {
		if err := parseLevel(&x.h.cfg, &p.params, level); err != nil {
			return nil, id, p, err
		}
	}
	if timeout, given := values["timeout"]; given {
		if err := parseTimeout(&x.h.cfg, &p.params, timeout); err != nil {
			return nil, id, p, err
		}
	}
	if staleness, given := values["max-staleness"]; given {
		if p.staleness, err = parseStaleness(staleness); err != nil {
			return nil, id, p, err
		}
		if p.level != kv.LevelBounded {
			return nil, id, p, kv.Errorf(kv.CodeBadRequest, "max-staleness goes with consistency=bounded")
		}
	}
	switch atomic, given := values["atomic"]; {
	case !given || atomic == "false":
	case atomic == "true":
		p.atomic = true
	default:
		return nil, id, p, kv.Errorf(kv.CodeBadRequest, "atomic=%q is neither true nor false", atomic)
	}
	if err := operationID(x.r.Header["Idempotency-Key"], &p.params); err != nil {
		return nil, id, p, err
	}
	for _, name := range []string{"If-Match", "If-None-Match", "Caprock-Context"} {
		for given := range x.r.Header {
			if strings.EqualFold(given, name) {
				return nil, id, p, kv.Errorf(kv.CodeBadRequest, "%s means nothing on a batch; an operation takes if_version", name)
			}
		}
	}
	body, err := readBody(x.r, batchBodyBytesMax)
	if err == nil {
		items, err = decodeBatch(body)
	}
	for i := range items {
		items[i].Level, items[i].MaxStaleness = p.level, p.staleness
	}
	return items, p.id, p, err
}

// batchType tells the names of the operations of a batch.
func batchType(name string) (kv.Op, bool) {
	switch name {
	case http.MethodGet:
		return kv.OpGet, true
	case http.MethodPut:
		return kv.OpPut, true
	case http.MethodDelete:
		return kv.OpDelete, true
	default:
		return 0, false
	}
}

// batchFields are the members of an operation. All but if_version are strings.
func batchFields() []string {
	return []string{"type", "key", "value", "encoding", "key_encoding", "if_version", "ttl"}
}

// decodeBatch reads {"operations":[{"type":…,"key":…},…]}, as strictly as decodeStrings reads its objects. Keys and values
// share body's memory.
func decodeBatch(body []byte) ([]kv.Request, *kv.Error) {
	i, err := expect(body, 0, '{', "an object opens with {")
	if err != nil {
		return nil, err
	}
	if _, i, err = decodeName(body, skipSpace(body, i), []string{"operations"}); err != nil {
		return nil, err
	}
	if i, err = expect(body, i, ':', "a name is followed by :"); err != nil {
		return nil, err
	}
	if i, err = expect(body, i, '[', `"operations" is an array, which opens with [`); err != nil {
		return nil, err
	}
	var items []kv.Request
	if i = skipSpace(body, i); i < len(body) && body[i] == ']' {
		i++
	} else {
		for more := true; more; {
			if len(items) == kv.BatchItemsMax {
				return nil, kv.Errorf(kv.CodeBadRequest, "the batch has more than %d operations", kv.BatchItemsMax)
			}
			var item kv.Request
			if item, i, err = decodeItem(body, i); err != nil {
				e := *err
				e.Detail = "operation " + strconv.Itoa(len(items)) + ": " + e.Detail
				return nil, &e
			}
			items = append(items, item)
			if more, i, err = separator(body, i, ']'); err != nil {
				return nil, err
			}
		}
	}
	if i, err = expect(body, i, '}', "the object closes with }"); err != nil {
		return nil, err
	}
	return items, trailing(body, i)
}

// expect passes over white space and the byte.
func expect(body []byte, i int, want byte, rule string) (next int, _ *kv.Error) {
	if i = skipSpace(body, i); i >= len(body) || body[i] != want {
		return 0, malformed(i, rule)
	}
	return i + 1, nil
}

// separator passes over what follows an element: a comma, or the end.
func separator(body []byte, i int, end byte) (more bool, next int, _ *kv.Error) {
	switch i = skipSpace(body, i); {
	case i < len(body) && body[i] == end:
		return false, i + 1, nil
	case i < len(body) && body[i] == ',':
		return true, skipSpace(body, i+1), nil
	default:
		return false, 0, malformed(i, "an element is followed by , or the end of what holds it")
	}
}

// decodeItem reads one operation.
func decodeItem(body []byte, i int) (item kv.Request, next int, err *kv.Error) {
	names := batchFields()
	fields := make([][]byte, len(names))
	if i, err = expect(body, i, '{', "an operation is an object, which opens with {"); err != nil {
		return item, 0, err
	}
	i = skipSpace(body, i)
	for more := true; more; {
		var which int
		if which, i, err = decodeName(body, i, names); err != nil {
			return item, 0, err
		}
		if fields[which] != nil {
			return item, 0, kv.Errorf(kv.CodeBadRequest, "field %q is given more than once", names[which])
		}
		if i, err = expect(body, i, ':', "a name is followed by :"); err != nil {
			return item, 0, err
		}
		i = skipSpace(body, i)
		if names[which] == "if_version" {
			fields[which], i, err = decodeNumber(body, i)
		} else if fields[which], i, err = decodeString(body, i); err != nil && i == 0 {
			err = kv.Errorf(kv.CodeBadRequest, "field %q is not a well-formed string: %s", names[which], err.Detail)
		}
		if err != nil {
			return item, 0, err
		}
		if more, i, err = separator(body, i, '}'); err != nil {
			return item, 0, err
		}
	}
	item, err = makeItem(fields)
	return item, i, err
}

// decodeNumber reads a whole number that is not negative. It returns its digits.
func decodeNumber(body []byte, i int) (digits []byte, next int, _ *kv.Error) {
	start := i
	for i < len(body) && '0' <= body[i] && body[i] <= '9' {
		i++
	}
	if i == start || i < len(body) && strings.IndexByte(".eE+-", body[i]) >= 0 {
		return nil, 0, kv.Errorf(kv.CodeBadRequest, "if_version is not a version: it is a whole number, 0 for a key that must not exist")
	}
	return body[start:i:i], i, nil
}

// makeItem turns the fields, in the order of batchFields, into an operation.
func makeItem(fields [][]byte) (item kv.Request, err *kv.Error) {
	op, known := batchType(string(fields[0]))
	switch {
	case !known:
		return item, kv.Errorf(kv.CodeBadRequest, `"type" is one of "GET", "PUT" and "DELETE"`)
	case fields[1] == nil:
		return item, kv.Errorf(kv.CodeBadRequest, `the operation has no "key"`)
	case op == kv.OpPut && fields[2] == nil:
		return item, kv.Errorf(kv.CodeBadRequest, `a PUT has a "value"`)
	case op != kv.OpPut && (fields[2] != nil || fields[3] != nil):
		return item, kv.Errorf(kv.CodeBadRequest, `a %s has no "value"`, fields[0])
	}
	item.Op = op
	if item.Key, err = decodeEncoding(fields[1], fields[4]); err != nil {
		return item, err
	}
	if op == kv.OpPut {
		if item.Value, err = decodeEncoding(fields[2], fields[3]); err != nil {
			return item, err
		}
	}
	if fields[6] != nil {
		if item.TTL, err = parseTTL(string(fields[6])); err != nil {
			return item, err
		}
		if op != kv.OpPut {
			return item, kv.Errorf(kv.CodeBadRequest, `a %s has no "ttl"`, fields[0])
		}
	}
	if fields[5] != nil {
		version, ok := parseVersion(string(fields[5]))
		if !ok {
			return item, kv.Errorf(kv.CodeBadRequest, "if_version=%s is out of range", fields[5])
		}
		item.Condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	}
	return item, nil
}
