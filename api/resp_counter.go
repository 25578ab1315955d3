package api

import (
	"math"
	"strconv"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

func (c *respConn) incr(args [][]byte) { c.add(args[0], 1) }
func (c *respConn) decr(args [][]byte) { c.add(args[0], -1) }

func (c *respConn) incrby(args [][]byte) { c.addText(args, false) }
func (c *respConn) decrby(args [][]byte) { c.addText(args, true) }

func (c *respConn) addText(args [][]byte, negate bool) {
	n, ok := parseCounter(args[1])
	switch {
	case !ok:
		c.error("value is not an integer or out of range")
		return
	case negate && n == math.MinInt64:
		c.error("decrement would overflow")
		return
	case negate:
		n = -n
	}
	c.add(args[0], n)
}

// parseCounter reads a number in the one way in which counters are written.
func parseCounter(text []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && strconv.FormatInt(n, 10) == string(text)
}

// add adds to the number that the key holds; an absent key holds 0. When the key expires stays as it is.
func (c *respConn) add(key []byte, n int64) {
	var sum int64
	refusal := ""
	_, err := c.update(key, func(old *kv.Response) (edit, *kv.Error) {
		held, ok := int64(0), true
		if old.Found {
			held, ok = parseCounter(old.Value)
		}
		refusal = ""
		switch {
		case !ok:
			refusal = "value is not an integer or out of range"
		case n > 0 && held > math.MaxInt64-n, n < 0 && held < math.MinInt64-n:
			refusal = "increment or decrement would overflow"
		}
		if refusal != "" {
			return noEdit(), nil
		}
		sum = held + n
		return replace(old, strconv.AppendInt(nil, sum, 10)), nil
	})
	switch {
	case err != nil:
		c.failure(err)
	case refusal != "":
		c.error("%s", refusal)
	default:
		c.out = redcon.AppendInt(c.out, sum)
	}
}

// append adds to the end of what the key holds, and answers its length.
func (c *respConn) append(args [][]byte) {
	length := 0
	_, err := c.update(args[0], func(old *kv.Response) (edit, *kv.Error) {
		value := make([]byte, 0, len(old.Value)+len(args[1]))
		value = append(append(value, old.Value...), args[1]...)
		length = len(value)
		return replace(old, value), nil
	})
	if err != nil {
		c.failure(err)
		return
	}
	c.out = redcon.AppendInt(c.out, int64(length))
}
