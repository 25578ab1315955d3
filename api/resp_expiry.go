package api

import (
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// What TTL and its kin answer of a key that is absent, and of one that never expires.
const (
	expiryAbsent = -2
	expiryNever  = -1
)

// expiry returns a command that says in units when a key expires, or in how long.
func expiry(unit time.Duration, at bool) func(c *respConn, args [][]byte) {
	return func(c *respConn, args [][]byte) {
		ctx, cancel := c.deadline()
		defer cancel()
		old, err := c.read(ctx, args[0])
		if err != nil {
			c.failure(err)
			return
		}
		c.out = redcon.AppendInt(c.out, expiryOf(&old, unit, at, c.s.deps.WallNow()))
	}
}

func expiryOf(r *kv.Response, unit time.Duration, at bool, now time.Time) int64 {
	switch {
	case !r.Found:
		return expiryAbsent
	case r.Expires.IsZero():
		return expiryNever
	case at:
		return r.Expires.UnixMilli() / int64(unit/time.Millisecond)
	default:
		// To the nearest unit, as Redis does; of a value that is still there never less than nothing.
		return int64((max(r.Expires.Sub(now), 0) + unit/2) / unit)
	}
}

// expiring returns a command that sets when a key expires: it writes the value that the key holds once more.
func expiring(name string, unit time.Duration, at bool) func(c *respConn, args [][]byte) {
	return func(c *respConn, args [][]byte) {
		n, err := strconv.ParseInt(string(args[1]), 10, 64)
		if err != nil {
			c.error("value is not an integer or out of range")
			return
		}
		permits, ok := c.expireOption(args[2:])
		if !ok {
			return
		}
		var ttl time.Duration
		switch {
		case at:
			ttl, ok = c.until(n, unit)
		case n > 0:
			ttl, ok = parseExpiry(args[1], unit)
		}
		if !ok {
			c.error("invalid expire time in '%s' command", name)
			return
		}
		c.expire(args[0], ttl, permits)
	}
}

// expireOption reads the one option that there may be. It returns whether the key that has the old expiry, zero for none,
// may get the new one.
func (c *respConn) expireOption(args [][]byte) (permits func(old, next time.Time) bool, ok bool) {
	option := ""
	if len(args) == 1 {
		option = strings.ToUpper(string(args[0]))
	}
	switch {
	case len(args) == 0:
		return func(time.Time, time.Time) bool { return true }, true
	case option == "NX":
		return func(old, _ time.Time) bool { return old.IsZero() }, true
	case option == "XX":
		return func(old, _ time.Time) bool { return !old.IsZero() }, true
	case option == "GT": // what never expires is later than anything
		return func(old, next time.Time) bool { return !old.IsZero() && next.After(old) }, true
	case option == "LT":
		return func(old, next time.Time) bool { return old.IsZero() || next.Before(old) }, true
	}
	c.error("unsupported option %s", printable(args[len(args)-1]))
	return nil, false
}

// expire answers 1 when the key now expires after ttl, and 0 when it is absent or must not. A time that is over removes it.
func (c *respConn) expire(key []byte, ttl time.Duration, permits func(old, next time.Time) bool) {
	changed := int64(0)
	_, err := c.update(key, func(old *kv.Response) (edit, *kv.Error) {
		changed = 0
		if !old.Found || !permits(old.Expires, c.s.deps.WallNow().Add(ttl)) {
			return noEdit(), nil
		}
		changed = 1
		if ttl < time.Millisecond {
			return edit{op: kv.OpDelete}, nil
		}
		return edit{op: kv.OpPut, value: old.Value, ttl: ttl}, nil
	})
	c.changed(changed, err)
}

// persist answers 1 when the key would have expired and now never does.
func (c *respConn) persist(args [][]byte) {
	changed := int64(0)
	_, err := c.update(args[0], func(old *kv.Response) (edit, *kv.Error) {
		changed = 0
		if !old.Found || old.Expires.IsZero() {
			return noEdit(), nil
		}
		changed = 1
		return edit{op: kv.OpPut, value: old.Value}, nil
	})
	c.changed(changed, err)
}

func (c *respConn) changed(n int64, err *kv.Error) {
	if err != nil {
		c.failure(err)
		return
	}
	c.out = redcon.AppendInt(c.out, n)
}
