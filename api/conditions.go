package api

import (
	"encoding/binary"
	"net/http"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/caprockdb/caprock/pkg/kv"
)

// An entity tag names one version of a key. A version that is in the Raft order has its number, "41", so that the tag
// can be a condition. Any other has an opaque tag, "e-…", which can only tell whether an answer changed.

const opaqueTagPrefix = "e-"

// tagOf returns the entity tag of what the response holds, quotes included.
func tagOf(resp *kv.Response) string {
	var buf [32]byte
	dst := append(buf[:0], '"')
	// An answer to a write has not been read, so Settled says nothing about it.
	if resp.Version > 0 && len(resp.Siblings) == 0 && (resp.Settled || resp.Outcome == kv.OutcomeApplied) {
		dst = strconv.AppendUint(dst, resp.Version, 10)
		return string(append(dst, '"'))
	}
	dst = append(dst, opaqueTagPrefix...)
	dst = strconv.AppendUint(dst, opaqueHash(resp), 16)
	return string(append(dst, '"'))
}

// opaqueHash digests what distinguishes an unsettled answer. The context alone would do where it is given, because no
// two versions share a dot; value and time are in it so that an answer without one is told apart too.
func opaqueHash(resp *kv.Response) uint64 {
	var d xxhash.Digest
	d.Reset()
	var n [16]byte
	binary.BigEndian.PutUint64(n[:], resp.Version)
	binary.BigEndian.PutUint64(n[8:], uint64(resp.Timestamp.UnixMilli()))
	_, _ = d.Write(n[:])
	_, _ = d.Write(resp.Context)
	_, _ = d.Write(resp.Value)
	return d.Sum64()
}

// writeCondition adds the conditions that a write's headers state to what its query states. A write has one condition
// at most: two could contradict one another.
func writeCondition(h http.Header, p *params) *kv.Error {
	ifMatch, ifNoneMatch := h["If-Match"], h["If-None-Match"]
	given := len(ifMatch) + len(ifNoneMatch)
	if p.condition.Kind != kv.ConditionNone {
		given++
	}
	switch {
	case given > 1:
		return kv.Errorf(kv.CodeBadRequest, "a write takes one condition: if-version, If-Match or If-None-Match")
	case len(ifNoneMatch) == 1:
		if strings.TrimSpace(ifNoneMatch[0]) != "*" {
			return kv.Errorf(kv.CodeBadRequest, "If-None-Match of a write can only be *, which means that the key must not exist")
		}
		p.condition = kv.Condition{Kind: kv.ConditionVersion}
	case len(ifMatch) == 1:
		return parseIfMatch(strings.TrimSpace(ifMatch[0]), p)
	}
	return nil
}

// parseIfMatch reads * or one entity tag. A tag that no strong answer carries is refused, not reported as a miss: we do
// not know whether the value changed, and a client told so would give up or retry for the wrong reason.
func parseIfMatch(value string, p *params) *kv.Error {
	if value == "*" {
		p.condition = kv.Condition{Kind: kv.ConditionExists}
		return nil
	}
	tag, quoted := strings.CutPrefix(value, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	switch {
	case !quoted || !closed || strings.ContainsAny(tag, `",`):
		return kv.Errorf(kv.CodeBadRequest, `If-Match of a write is * or one ETag of an earlier answer, in quotes: "41"`)
	case strings.HasPrefix(tag, opaqueTagPrefix):
		return kv.Errorf(kv.CodeConditionNeedsStrong, "the ETag names a version that is not in the Raft order, "+
			"so it cannot be a condition; read the key at level strong, or send the context of the read")
	}
	version, ok := parseVersion(tag)
	if !ok || version == 0 || tag[0] == '0' {
		return kv.Errorf(kv.CodeBadRequest, "If-Match: %q is not an ETag that an answer gave", tag)
	}
	p.condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	return nil
}

// notModified reports whether If-None-Match lists the tag, so that a read needs no body.
func notModified(h http.Header, tag string) bool { return listsTag(h["If-None-Match"], tag) }

// listsTag reports whether a list of entity tags holds the tag, or is *. Weakened tags match too: what weakens them on
// the way is a proxy that encoded the body, which leaves the version what it was.
func listsTag(lines []string, tag string) bool {
	for _, line := range lines {
		for listed := range strings.SplitSeq(line, ",") {
			listed = strings.TrimPrefix(strings.TrimSpace(listed), "W/")
			if listed == tag || listed == "*" {
				return true
			}
		}
	}
	return false
}

// readMiss evaluates the If-Match of a read: the answer must be one of the tags.
func readMiss(h http.Header, tag string, resp *kv.Response) *kv.Error {
	lines := h["If-Match"]
	if len(lines) == 0 || listsTag(lines, tag) {
		return nil
	}
	err := kv.Errorf(kv.CodeVersionMismatch, "If-Match does not list the current ETag, %s", tag)
	err.CurrentVersion = resp.Version
	return err
}

// acceptsRaw reports whether the client would rather have the bare bytes than JSON.
func acceptsRaw(accept string) bool {
	switch accept {
	case "", "*/*", "application/json":
		return false
	case contentRaw:
		return true
	}
	raw, rawAt := acceptQuality(accept, contentRaw)
	json, jsonAt := acceptQuality(accept, contentJSON)
	return raw > 0 && (raw > json || raw == json && rawAt < jsonAt)
}

// acceptQuality returns the weight that an Accept header gives exactly this media type, and its place in the list.
// A type that is not listed weighs nothing; ranges such as */* express no preference between ours.
func acceptQuality(accept, mediaType string) (quality float64, at int) {
	for item := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(item, ";")
		if !strings.EqualFold(strings.TrimSpace(name), mediaType) {
			at++
			continue
		}
		for parameter := range strings.SplitSeq(parameters, ";") {
			if q, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
				quality, err := strconv.ParseFloat(q, 64)
				if err != nil {
					return 0, at
				}
				return quality, at
			}
		}
		return 1, at
	}
	return 0, at
}
