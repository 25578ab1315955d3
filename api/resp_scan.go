package api

import (
	"strconv"
	"strings"
	"sync"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// A cursor of SCAN is a number, by which the node remembers the key after which the scan goes on. Any connection of the
// node can go on with it, as clients with pools do.

const (
	// scanCountDefault is how many keys one SCAN looks at without COUNT.
	scanCountDefault = 10
	// scanCursorsMax bounds the cursors that are remembered; the oldest is forgotten first.
	scanCursorsMax = 4096
)

// scanCursors are the cursors that scans can go on with.
type scanCursors struct {
	mu sync.Mutex // guards what follows
	// after has the cursors that are neither above last nor scanCursorsMax below it.
	after map[uint64][]byte
	last  uint64
}

func newScanCursors() *scanCursors { return &scanCursors{after: make(map[uint64][]byte)} }

// keep returns a cursor for the key. It is never 0, which stands for the beginning and the end.
func (s *scanCursors) keep(after []byte) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.after[s.last] = after
	delete(s.after, s.last-min(s.last, scanCursorsMax))
	return s.last
}

// find returns the key of the cursor. A cursor can be used again, as after an answer that got lost.
func (s *scanCursors) find(cursor uint64) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after, ok := s.after[cursor]
	return after, ok
}

// scanQuery is what a SCAN asks for.
type scanQuery struct {
	cursor  uint64
	pattern string
	count   int
	nothing bool // a type of which there are no keys
}

// scan answers some keys and the cursor with which it goes on, 0 when it is through.
func (c *respConn) scan(args [][]byte) {
	q, ok := c.scanOptions(args)
	if !ok {
		return
	}
	list := &kv.ListQuery{Prefix: []byte(literalPrefix(q.pattern)), Limit: q.count, KeysOnly: true}
	if q.cursor != 0 {
		if list.After, ok = c.s.cursors.find(q.cursor); !ok {
			c.error("invalid cursor: this node does not know it (any more)")
			return
		}
	}
	var page kv.Response
	if !q.nothing {
		ctx, cancel := c.deadline()
		defer cancel()
		var err *kv.Error
		if page, err = c.s.exec.execute(ctx, &kv.Request{Op: kv.OpList, Level: c.level, MaxStaleness: c.staleness, List: list}); err != nil {
			c.failure(err)
			return
		}
	}
	var keys [][]byte
	for i := range page.Listed {
		if matches(q.pattern, string(page.Listed[i].Key)) {
			keys = append(keys, page.Listed[i].Key)
		}
	}
	next := uint64(0)
	if page.More && len(page.Listed) > 0 {
		next = c.s.cursors.keep(page.Listed[len(page.Listed)-1].Key)
	}
	c.out = redcon.AppendArray(c.out, 2)
	c.out = redcon.AppendBulkString(c.out, strconv.FormatUint(next, 10))
	c.out = redcon.AppendArray(c.out, len(keys))
	for _, key := range keys {
		c.out = redcon.AppendBulk(c.out, key)
	}
}

func (c *respConn) scanOptions(args [][]byte) (q scanQuery, ok bool) {
	q = scanQuery{pattern: "*", count: scanCountDefault}
	var err error
	if q.cursor, err = strconv.ParseUint(string(args[0]), 10, 64); err != nil {
		c.error("invalid cursor")
		return q, false
	}
	for options := args[1:]; len(options) > 0; options = options[2:] {
		if len(options) == 1 {
			c.error("syntax error")
			return q, false
		}
		switch text := string(options[1]); strings.ToUpper(string(options[0])) {
		case "MATCH":
			q.pattern = text
		case "COUNT":
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				c.error("value is not an integer or out of range")
				return q, false
			}
			q.count = min(n, kv.ListItemsMax)
		case "TYPE":
			q.nothing = !strings.EqualFold(text, "string")
		default:
			c.error("syntax error")
			return q, false
		}
	}
	return q, true
}

// literalPrefix returns what everything begins with that the pattern matches.
func literalPrefix(pattern string) string {
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		pattern = pattern[:i]
	}
	return pattern[:min(len(pattern), kv.KeyBytesMax)]
}

// matches reports whether the pattern matches all of the text, by bytes: * any number of them, ? one, [a-z] and [^a-z] one
// of a set, and a backslash takes the special meaning from what follows. After a mismatch only the last star can still take
// more, so that the time is bounded by the product of both lengths.
func matches(pattern, text string) bool {
	p, t, star, from := 0, 0, -1, 0
	for t < len(text) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, t
			p++
			continue
		}
		if n, ok := matchOne(pattern[p:], text[t]); ok {
			p += n
			t++
			continue
		}
		if star < 0 {
			return false
		}
		from++
		p, t = star+1, from
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne reports whether the beginning of the pattern, n bytes of it, matches the byte.
func matchOne(pattern string, b byte) (n int, ok bool) {
	switch {
	case pattern == "":
		return 0, false
	case pattern[0] == '?':
		return 1, true
	case pattern[0] == '[':
		return matchSet(pattern, b)
	case pattern[0] == '\\' && len(pattern) > 1:
		return 2, pattern[1] == b
	default:
		return 1, pattern[0] == b
	}
}

// matchSet is matchOne of a set. One that is not closed ends with the pattern.
func matchSet(pattern string, b byte) (n int, ok bool) {
	n = 1
	inverted := len(pattern) > 1 && pattern[1] == '^'
	if inverted {
		n++
	}
	for n < len(pattern) && pattern[n] != ']' {
		if pattern[n] == '\\' && n+1 < len(pattern) {
			n++
		}
		low, high := pattern[n], pattern[n]
		if n+2 < len(pattern) && pattern[n+1] == '-' && pattern[n+2] != ']' {
			high = pattern[n+2]
			n += 2
		}
		ok = ok || min(low, high) <= b && b <= max(low, high)
		n++
	}
	return min(n+1, len(pattern)), ok != inverted
}
