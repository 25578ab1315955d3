package api

import (
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// params is what the query of a data request asks for.
type params struct {
	level     kv.Level
	quorum    kv.Quorum
	condition kv.Condition
	siblings  kv.SiblingMode
	timeout   time.Duration // 0: not given
	context   []byte        // nil: not given
	id        kv.OpID       // of the header Idempotency-Key
	ttl       time.Duration // 0: for ever
	sloppy    bool
	fallback  kv.Level      // LevelUnset: none
	session   []byte        // nil: not given
	staleness time.Duration // 0: not given
	seen      uint32        // a bit for each entry of dataParams that was given
}

// dataParam is one documented parameter of the data routes.
type dataParam struct {
	name   string
	reads  bool // means something on GET and HEAD
	writes bool // means something on PUT and DELETE
	parse  func(c *Config, p *params, value string) *kv.Error
}

// dataParamTable lists every documented parameter. It is built once per handler, and searched front to back.
func dataParamTable() []dataParam {
	return []dataParam{
		{"consistency", true, true, parseLevel},
		{"r", true, true, func(_ *Config, p *params, v string) *kv.Error { return parseCount("r", v, &p.quorum.R) }},
		{"w", false, true, func(_ *Config, p *params, v string) *kv.Error { return parseCount("w", v, &p.quorum.W) }},
		{"n", true, true, func(_ *Config, p *params, v string) *kv.Error { return parseCount("n", v, &p.quorum.N) }},
		{"timeout", true, true, parseTimeout},
		{"context", false, true, func(_ *Config, p *params, v string) *kv.Error { return parseContext(v, &p.context) }},
		{"if-version", false, true, parseIfVersion},
		{"siblings", true, false, parseSiblings},
		{"ttl", false, true, func(_ *Config, p *params, v string) (err *kv.Error) {
			p.ttl, err = parseTTL(v)
			return err
		}},
		{"sloppy", false, true, parseSloppy},
		{"fallback", true, true, parseFallback},
		{"session", true, true, func(_ *Config, p *params, v string) *kv.Error { return parseSession(v, &p.session) }},
		{"max-staleness", true, true, func(_ *Config, p *params, v string) (err *kv.Error) {
			p.staleness, err = parseStaleness(v)
			return err
		}},
		{"explain", true, true, unsupportedParam("explain")},
	}
}

// parseParams reads the query of a data request in one pass. The error's level, when the query named one before the
// mistake, is in p.
func (h *handler) parseParams(query string, op kv.Op, p *params) *kv.Error {
	for query != "" {
		name, value, rest, err := nextParam(query)
		if err != nil {
			return err
		}
		query = rest
		if name == "" && value == "" {
			continue
		}
		i := h.paramIndex(name)
		if i < 0 {
			return kv.Errorf(kv.CodeBadRequest, "unknown parameter %q; did you mean %q?", name, h.nearestParam(name))
		}
		param := &h.params[i]
		if op.IsWrite() && !param.writes {
			return kv.Errorf(kv.CodeBadRequest, "parameter %q means nothing on a write", name)
		}
		if !op.IsWrite() && !param.reads {
			return kv.Errorf(kv.CodeBadRequest, "parameter %q means nothing on a read", name)
		}
		if p.seen&(1<<i) != 0 {
			return kv.Errorf(kv.CodeBadRequest, "parameter %q is given more than once", name)
		}
		p.seen |= 1 << i
		if err := param.parse(&h.cfg, p, value); err != nil {
			return err
		}
	}
	return nil
}

func (h *handler) paramIndex(name string) int {
	for i := range h.params {
		if h.params[i].name == name {
			return i
		}
	}
	return -1
}

func (h *handler) nearestParam(name string) string {
	names := make([]string, len(h.params))
	for i := range h.params {
		names[i] = h.params[i].name
	}
	return kv.Nearest(name, names)
}

// nextParam cuts the first parameter off a query that is not empty.
func nextParam(query string) (name, value, rest string, _ *kv.Error) {
	pair, rest, _ := strings.Cut(query, "&")
	name, value, _ = strings.Cut(pair, "=")
	name, err := unescapeParam(name)
	if err != nil {
		return "", "", "", err
	}
	value, err = unescapeParam(value)
	return name, value, rest, err
}

func unescapeParam(s string) (string, *kv.Error) {
	if !strings.ContainsAny(s, "%+") {
		return s, nil
	}
	out, err := url.QueryUnescape(s)
	if err != nil {
		return "", kv.Errorf(kv.CodeBadRequest, "the query has a bad percent-escape: %w", err)
	}
	return out, nil
}

func parseLevel(_ *Config, p *params, value string) *kv.Error {
	level, err := kv.ParseLevel(value)
	if err != nil {
		return kv.AsError(err)
	}
	p.level = level
	return nil
}

func parseFallback(_ *Config, p *params, value string) (err *kv.Error) {
	level, failed := kv.ParseLevel(value)
	p.fallback = level
	return kv.AsError(failed)
}

// parseCount reads n, r or w. A number below 1 is out of range whatever the cluster looks like; zero would otherwise be
// taken for "not given".
func parseCount(name, value string, into *int) *kv.Error {
	count, err := strconv.Atoi(value)
	if err != nil && !isDigits(strings.TrimPrefix(value, "-")) {
		return kv.Errorf(kv.CodeBadRequest, "%s=%q is not a whole number", name, value)
	}
	if err != nil || count < 1 || count > quorumMax {
		return kv.Errorf(kv.CodeBadQuorum, "%s=%s is out of range: it is at least 1 and at most the number of replicas", name, value)
	}
	*into = count
	return nil
}

// quorumMax is more replicas than any partition can have; it keeps absurd numbers out of later arithmetic.
const quorumMax = 1 << 16

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func parseTimeout(c *Config, p *params, value string) *kv.Error {
	d, err := time.ParseDuration(value)
	switch {
	case err != nil:
		return kv.Errorf(kv.CodeBadRequest, "timeout=%q is not a duration such as 500ms or 2s", value)
	case d <= 0 || d > c.RequestTimeoutMax:
		return kv.Errorf(kv.CodeBadRequest, "timeout=%s is out of range: it is above 0 and at most %v", value, c.RequestTimeoutMax)
	}
	p.timeout = d
	return nil
}

// parseTTL reads a time to live: a duration, or a number of seconds.
func parseTTL(value string) (time.Duration, *kv.Error) {
	d, err := time.ParseDuration(value)
	if seconds, bad := strconv.ParseInt(value, 10, 64); bad == nil {
		// More than can be is cut to what is refused below, so that it does not wrap around into what is not.
		d, err = time.Duration(min(seconds, int64(kv.TTLMax/time.Second)+1))*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, kv.Errorf(kv.CodeBadRequest, "ttl=%q is neither a duration such as 90s or 24h nor a number of seconds", value)
	case d < time.Millisecond || d > kv.TTLMax:
		return 0, kv.Errorf(kv.CodeBadRequest, "ttl=%s is out of range: it is at least 1ms and at most %d hours", value, int(kv.TTLMax.Hours()))
	}
	return d.Truncate(time.Millisecond), nil
}

// parseStaleness reads how stale an answer may be: a duration, or a number of seconds. Parts of a millisecond are cut off.
func parseStaleness(value string) (time.Duration, *kv.Error) {
	d, err := time.ParseDuration(value)
	if seconds, bad := strconv.ParseInt(value, 10, 64); bad == nil {
		d, err = time.Duration(max(min(seconds, int64(kv.MaxStalenessMax/time.Second)+1), -1))*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, kv.Errorf(kv.CodeBadRequest, "max-staleness=%q is neither a duration such as 500ms or 10s nor a number of seconds", value)
	case d < kv.MaxStalenessMin || d > kv.MaxStalenessMax:
		return 0, kv.Errorf(kv.CodeBadRequest, "max-staleness=%s is out of range: it is %s to %s; an answer that is not stale at all is level strong's",
			value, kv.MaxStalenessMin, kv.MaxStalenessMax)
	}
	return d.Truncate(time.Millisecond), nil
}

func parseIfVersion(_ *Config, p *params, value string) *kv.Error {
	version, ok := parseVersion(value)
	if !ok {
		return kv.Errorf(kv.CodeBadRequest, "if-version=%q is not a version: it is a whole number, 0 for a key that must not exist", value)
	}
	p.condition = kv.Condition{Kind: kv.ConditionVersion, Version: version}
	return nil
}

// parseVersion reads a version as answers spell it: decimal digits, nothing else.
func parseVersion(s string) (uint64, bool) {
	if !isDigits(s) {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, 64)
	return v, err == nil
}

// parseContext reads a context token in its text form. Padding is tolerated, because some encoders insist on it. An
// empty token is an error: it would be taken for "not given", and the write would then be blind.
func parseContext(value string, into *[]byte) *kv.Error {
	token, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil || len(token) == 0 {
		return kv.Errorf(kv.CodeBadRequest, "the context is not one that an answer gave: it is not base64url")
	}
	*into = token
	return nil
}

// parseSession reads a session's token in its text form, or what begins a session.
func parseSession(value string, into *[]byte) *kv.Error {
	if value == kv.SessionNew {
		*into = []byte(kv.SessionNew)
		return nil
	}
	token, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil || len(token) == 0 {
		return kv.Errorf(kv.CodeBadRequest, "the session is neither %q nor a token that an answer gave: it is not base64url", kv.SessionNew)
	}
	*into = token
	return nil
}

func parseSloppy(_ *Config, p *params, value string) *kv.Error {
	switch value {
	case "true":
		p.sloppy = true
	case "false":
	default:
		return kv.Errorf(kv.CodeBadRequest, "sloppy=%q is neither true nor false", value)
	}
	return nil
}

func parseSiblings(_ *Config, p *params, value string) *kv.Error {
	switch value {
	case "all":
		p.siblings = kv.SiblingsAll
	case "resolve":
		p.siblings = kv.SiblingsResolve
	case "error":
		p.siblings = kv.SiblingsError
	default:
		return kv.Errorf(kv.CodeBadRequest, "siblings=%q is unknown; it is one of resolve, all, error", value)
	}
	return nil
}

// unsupportedParam refuses a parameter that the contract has and this version does not honour yet.
func unsupportedParam(name string) func(*Config, *params, string) *kv.Error {
	return func(*Config, *params, string) *kv.Error {
		return kv.Errorf(kv.CodeBadRequest, "parameter %q is not supported by this version", name)
	}
}

// queryValues reads the query of a route other than the data routes: each of the names at most once, and no others.
func queryValues(query string, names ...string) (map[string]string, *kv.Error) {
	values := make(map[string]string, len(names))
	for query != "" {
		name, value, rest, err := nextParam(query)
		if err != nil {
			return nil, err
		}
		query = rest
		if name == "" && value == "" {
			continue
		}
		if _, twice := values[name]; twice {
			return nil, kv.Errorf(kv.CodeBadRequest, "parameter %q is given more than once", name)
		}
		if nearestName := kv.Nearest(name, names); nearestName == "" {
			return nil, kv.Errorf(kv.CodeBadRequest, "unknown parameter %q; this route takes none", name)
		} else if nearestName != name {
			return nil, kv.Errorf(kv.CodeBadRequest, "unknown parameter %q; did you mean %q?", name, nearestName)
		}
		values[name] = value
	}
	return values, nil
}
