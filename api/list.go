package api

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// listGuarantees are what listings say of themselves, by level.
var listGuarantees = map[kv.Level]string{
	kv.LevelStrong: "each partition is linearizable; all of them together are no snapshot",
	kv.LevelEventual: "each key is merged from r replicas of its partition, so that it shows every write whose w and r overlap; " +
		"all of them together are no snapshot",
	kv.LevelBounded: "each partition is as a replica holds it that was proven no staler than max-staleness; all of them together are no snapshot",
	kv.LevelLocal:   "each partition is as one of its replicas holds it, however old; all of them together are no snapshot",
}

// list serves GET /kv?prefix=.
func (x *exchange) list() {
	if !allows("GET, HEAD", x.r.Method) {
		x.methodNotAllowed("GET, HEAD")
		return
	}
	req, timeout, err := x.parseList()
	if err != nil {
		x.h.exec.refuse(req.Level, kv.OpList)
		x.fail(err)
		return
	}
	ctx, cancel := x.deadline(timeout)
	defer cancel()
	query := *req.List
	resp, err := x.h.exec.execute(ctx, req)
	if err != nil {
		x.fail(err)
		return
	}
	x.listHeaders(&resp)
	dst := append(x.body[:0], `{"items":[`...)
	for i := range resp.Listed {
		item := &resp.Listed[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendBytes(append(dst, '{'), "key", "key_encoding", item.Key)
		switch {
		case query.KeysOnly:
		case len(item.Siblings) > 0:
			dst = x.appendSiblingList(append(dst, ','), item.Siblings)
		default:
			dst = appendBytes(append(dst, ','), "value", "encoding", item.Value)
		}
		dst = append(dst, `,"version":`...)
		dst = strconv.AppendUint(dst, item.Version, 10)
		dst = append(dst, `,"timestamp":`...)
		dst = append(appendTime(dst, item.Timestamp), '}')
	}
	dst = appendPageToken(append(dst, ']'), &query, &resp)
	dst = append(dst, `,"consistency":`...)
	dst = appendText(dst, resp.Level.String())
	dst = append(dst, `,"guarantee":`...)
	dst = appendText(dst, listGuarantees[resp.Level])
	x.body = append(appendStaleness(dst, &resp), "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

// compatList serves GET /api/list?prefix=.
func (x *exchange) compatList() {
	values, err := queryValues(x.r.URL.RawQuery, "prefix", "page_token")
	if err != nil {
		x.refuseCompat(kv.OpList, err)
		return
	}
	query := kv.ListQuery{Prefix: []byte(values["prefix"]), Limit: kv.ListItemsMax}
	if token, given := values["page_token"]; given {
		if query.After, err = parsePageToken(token, query.Prefix); err != nil {
			x.refuseCompat(kv.OpList, err)
			return
		}
	}
	ctx, cancel := x.deadline(0)
	defer cancel()
	own := query
	resp, err := x.h.exec.execute(ctx, &kv.Request{Op: kv.OpList, Level: kv.LevelStrong, List: &own})
	if err != nil {
		x.fail(err)
		return
	}
	x.listHeaders(&resp)
	dst := append(x.body[:0], `{"pairs":[`...)
	for i := range resp.Listed {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendBytes(append(dst, '{'), "key", "key_encoding", resp.Listed[i].Key)
		dst = append(appendBytes(append(dst, ','), "value", "encoding", resp.Listed[i].Value), '}')
	}
	x.body = append(appendPageToken(append(dst, ']'), &query, &resp), "}\n"...)
	x.send(http.StatusOK, contentJSON)
}

func (x *exchange) listHeaders(resp *kv.Response) {
	h := x.w.Header()
	h["Cache-Control"] = headerNoCache
	h["Caprock-Consistency"] = []string{resp.Level.String()}
	if resp.Coordinator != kv.NoNode {
		h["Caprock-Coordinator"] = []string{x.h.deps.Backend.NodeName(resp.Coordinator)}
	}
	h["Caprock-Replicas"] = []string{replicaNames(x.h.deps.Backend, resp.Replicas)}
	if resp.Level == kv.LevelBounded {
		h[headerStaleness] = []string{strconv.FormatInt(resp.StalenessMillis(), 10)}
	}
}

// parseList reads the request. The request is returned with an error too, as far as it was read.
func (x *exchange) parseList() (*kv.Request, time.Duration, *kv.Error) {
	var p params
	req := &kv.Request{Op: kv.OpList, List: &kv.ListQuery{Limit: kv.ListItemsDefault}}
	values, err := queryValues(x.r.URL.RawQuery, "prefix", "limit", "page_token", "keys-only", "consistency", "timeout", "max-staleness")
	if err != nil {
		return req, 0, err
	}
	q := req.List
	q.Prefix = []byte(values["prefix"])
	if level, given := values["consistency"]; given {
		if err := parseLevel(&x.h.cfg, &p, level); err != nil {
			return req, 0, err
		}
		req.Level = p.level
	}
	if timeout, given := values["timeout"]; given {
		if err := parseTimeout(&x.h.cfg, &p, timeout); err != nil {
			return req, 0, err
		}
	}
	if staleness, given := values["max-staleness"]; given {
		if req.MaxStaleness, err = parseStaleness(staleness); err != nil {
			return req, 0, err
		}
	}
	if limit, given := values["limit"]; given {
		n, bad := strconv.Atoi(limit)
		if bad != nil || n < 1 || n > kv.ListItemsMax {
			return req, 0, kv.Errorf(kv.CodeBadRequest, "limit=%q is out of range: it is 1 to %d", limit, kv.ListItemsMax)
		}
		q.Limit = n
	}
	switch keysOnly, given := values["keys-only"]; {
	case !given || keysOnly == "false":
	case keysOnly == "true" || keysOnly == "":
		q.KeysOnly = true
	default:
		return req, 0, kv.Errorf(kv.CodeBadRequest, "keys-only=%q is neither true nor false", keysOnly)
	}
	if token, given := values["page_token"]; given {
		if q.After, err = parsePageToken(token, q.Prefix); err != nil {
			return req, 0, err
		}
	}
	return req, p.timeout, nil
}

// A page token is the last key of the page before, after a checksum over it and the prefix, so that a token of another
// listing is refused and not taken for a place in this one.
const pageTokenChecksumBytes = 4

func pageChecksum(prefix, key []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(binary.AppendUvarint(nil, uint64(len(prefix)))), crc32.IEEETable, append(append([]byte{}, prefix...), key...))
}

func pageToken(prefix, last []byte) string {
	raw := binary.BigEndian.AppendUint32(nil, pageChecksum(prefix, last))
	return base64.RawURLEncoding.EncodeToString(append(raw, last...))
}

func parsePageToken(token string, prefix []byte) ([]byte, *kv.Error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
	if err == nil && len(raw) > pageTokenChecksumBytes {
		key := raw[pageTokenChecksumBytes:]
		if binary.BigEndian.Uint32(raw) == pageChecksum(prefix, key) {
			return key, nil
		}
	}
	return nil, kv.Errorf(kv.CodeBadRequest, "the page_token is not one that a listing of this prefix gave")
}

// appendPageToken appends the member that leads to the next page, if there is one.
func appendPageToken(dst []byte, q *kv.ListQuery, resp *kv.Response) []byte {
	if !resp.More || len(resp.Listed) == 0 {
		return dst
	}
	dst = append(dst, `,"next_page_token":`...)
	return appendText(dst, pageToken(q.Prefix, resp.Listed[len(resp.Listed)-1].Key))
}
