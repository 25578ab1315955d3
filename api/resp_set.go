package api

import (
	"bytes"
	"strconv"
	"time"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// setOptions are what a SET says beside key and value.
type setOptions struct {
	condition kv.Condition
	// get wants the old value for an answer, keep leaves it at when the key expires.
	get, keep bool
	// ttl is how long the value is there; 0: for ever. past: it would have expired already.
	ttl  time.Duration
	past bool
}

func (c *respConn) set(args [][]byte) {
	if options, ok := c.setOptions(args[2:]); ok {
		c.setWith(args[0], args[1], options)
	}
}

func (c *respConn) setnx(args [][]byte) {
	err := c.put(args[0], args[1], setOptions{condition: kv.Condition{Kind: kv.ConditionVersion}})
	switch {
	case err == nil:
		c.out = redcon.AppendInt(c.out, 1)
	case err.Code == kv.CodeVersionMismatch:
		c.out = redcon.AppendInt(c.out, 0)
	default:
		c.failure(err)
	}
}

func (c *respConn) setex(args [][]byte)  { c.setFor("setex", args, time.Second) }
func (c *respConn) psetex(args [][]byte) { c.setFor("psetex", args, time.Millisecond) }

func (c *respConn) setFor(name string, args [][]byte, unit time.Duration) {
	ttl, ok := parseExpiry(args[1], unit)
	if !ok {
		c.error("invalid expire time in '%s' command", name)
		return
	}
	c.setWith(args[0], args[2], setOptions{ttl: ttl})
}

func (c *respConn) getset(args [][]byte) { c.setWith(args[0], args[1], setOptions{get: true}) }

// getdel removes exactly what it answers.
func (c *respConn) getdel(args [][]byte) {
	old, err := c.update(args[0], func(old *kv.Response) (edit, *kv.Error) {
		if !old.Found {
			return noEdit(), nil
		}
		return edit{op: kv.OpDelete}, nil
	})
	c.old(&old, err)
}

// old appends the value that a command has replaced, or nil.
func (c *respConn) old(old *kv.Response, err *kv.Error) {
	switch {
	case err != nil:
		c.failure(err)
	case old.Found:
		c.out = redcon.AppendBulk(c.out, old.Value)
	default:
		c.out = redcon.AppendNull(c.out)
	}
}

// setWith runs a SET. Where nothing depends on what the key holds but its existence, it is one write.
func (c *respConn) setWith(key, value []byte, o setOptions) {
	if !o.get && !o.keep {
		err := c.put(key, value, o)
		switch {
		case err == nil:
			c.ok()
		case err.Code == kv.CodeVersionMismatch && o.condition != (kv.Condition{}):
			c.out = redcon.AppendNull(c.out)
		default:
			c.failure(err)
		}
		return
	}
	missed := false
	old, err := c.update(key, func(old *kv.Response) (edit, *kv.Error) {
		missed = o.condition.Kind == kv.ConditionExists && !old.Found || o.condition.Kind == kv.ConditionVersion && old.Found
		switch {
		case missed:
			return noEdit(), nil
		case o.keep:
			return replace(old, value), nil
		case o.past:
			return edit{op: kv.OpDelete}, nil
		default:
			return edit{op: kv.OpPut, value: value, ttl: o.ttl}, nil
		}
	})
	switch {
	case err != nil || o.get:
		c.old(&old, err)
	case missed:
		c.out = redcon.AppendNull(c.out)
	default:
		c.ok()
	}
}

// put writes the key once. A value whose time is over is a deletion.
func (c *respConn) put(key, value []byte, o setOptions) *kv.Error {
	ctx, cancel := c.deadline()
	defer cancel()
	r := &kv.Request{Op: kv.OpPut, Level: c.level, Key: key, Value: value, Condition: o.condition, TTL: o.ttl}
	if o.past {
		r.Op, r.Value, r.TTL = kv.OpDelete, nil, 0
	}
	_, err := c.s.exec.execute(ctx, r)
	return err
}

// setOptions reads what follows key and value. false: it has answered why it cannot.
func (c *respConn) setOptions(args [][]byte) (o setOptions, ok bool) {
	expires := false
	for i := 0; i < len(args); i++ {
		option := string(bytes.ToUpper(args[i]))
		switch option {
		case "NX", "XX":
			if o.condition.Kind != kv.ConditionNone {
				c.error("syntax error")
				return o, false
			}
			if o.condition.Kind = kv.ConditionVersion; option == "XX" {
				o.condition.Kind = kv.ConditionExists
			}
			continue
		case "GET":
			o.get = true
			continue
		}
		valid := !expires && (option == "KEEPTTL" || i+1 < len(args))
		expires = true
		switch {
		case valid && option == "KEEPTTL":
			o.keep = true
			continue
		case valid && (option == "EX" || option == "EXAT"):
			ok = c.setExpiry(&o, args[i+1], time.Second, option == "EXAT")
		case valid && (option == "PX" || option == "PXAT"):
			ok = c.setExpiry(&o, args[i+1], time.Millisecond, option == "PXAT")
		default:
			c.error("syntax error")
			return o, false
		}
		if i++; !ok {
			c.error("invalid expire time in 'set' command")
			return o, false
		}
	}
	return o, true
}

// setExpiry reads a time to live, or a time.
func (c *respConn) setExpiry(o *setOptions, text []byte, unit time.Duration, at bool) (ok bool) {
	if !at {
		o.ttl, ok = parseExpiry(text, unit)
		return ok
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 1 {
		return false
	}
	o.ttl, ok = c.until(n, unit)
	o.past = ok && o.ttl < time.Millisecond
	return ok
}

// until returns how long it is, in whole milliseconds, until the time of the n-th unit of the Unix era; false when that is
// too far away. It may be over.
func (c *respConn) until(n int64, unit time.Duration) (time.Duration, bool) {
	now := c.s.deps.WallNow().UnixMilli()
	const millisMax = int64(kv.TTLMax / time.Millisecond)
	scale := int64(unit / time.Millisecond)
	if n > (now+millisMax)/scale {
		return 0, false
	}
	return time.Duration(max(n, 0)*scale-now) * time.Millisecond, true
}

// parseExpiry reads a positive time to live.
func parseExpiry(text []byte, unit time.Duration) (time.Duration, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 1 || n > int64(kv.TTLMax/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}
