package api

import (
	"context"
	"fmt"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// The commands of one pipeline run one after the other, as in Redis. The keys of one MGET, MSET, DEL or EXISTS are
// worked on at once: those commands touch several partitions and are not atomic here.

// deadline returns the context of one command. The caller cancels it.
func (c *respConn) deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.s.base, c.s.cfg.RequestTimeout)
}

// read reads one key. Concurrent versions are resolved to the last writer's: a Redis reply holds one value.
func (c *respConn) read(ctx context.Context, key []byte) (kv.Response, *kv.Error) {
	r := c.reads(key)
	return c.s.exec.execute(ctx, &r)
}

func (c *respConn) reads(key []byte) kv.Request {
	return kv.Request{Op: kv.OpGet, Level: c.level, MaxStaleness: c.staleness, Siblings: kv.SiblingsResolve, Key: key}
}

func (c *respConn) get(args [][]byte) {
	ctx, cancel := c.deadline()
	defer cancel()
	resp, err := c.read(ctx, args[0])
	switch {
	case err != nil:
		c.failure(err)
	case !resp.Found:
		c.out = redcon.AppendNull(c.out)
	default:
		c.out = redcon.AppendBulk(c.out, resp.Value)
	}
}

func (c *respConn) strlen(args [][]byte) {
	ctx, cancel := c.deadline()
	defer cancel()
	resp, err := c.read(ctx, args[0])
	if err != nil {
		c.failure(err)
		return
	}
	c.out = redcon.AppendInt(c.out, int64(len(resp.Value)))
}

// mgetKeysMax is how many keys one MGET reads before it looks at how much that was.
const mgetKeysMax = 128

func (c *respConn) mget(args [][]byte) {
	if c.tooManyKeys(len(args)) {
		return
	}
	found, size := make([]kv.Response, 0, len(args)), 0
	ctx, cancel := c.deadline()
	defer cancel()
	for first := 0; first < len(args); first += mgetKeysMax {
		part := args[first:min(first+mgetKeysMax, len(args))]
		for _, o := range c.each(ctx, len(part), func(i int) kv.Request { return c.reads(part[i]) }) {
			if o.err != nil {
				c.failure(o.err)
				return
			}
			size += len(o.resp.Value)
			found = append(found, o.resp)
		}
		if size > c.s.cfg.ReplyBytesMax {
			c.failure(kv.Errorf(kv.CodeBadRequest, "the values of one MGET exceed %d bytes; ask for fewer keys", c.s.cfg.ReplyBytesMax))
			return
		}
	}
	c.out = redcon.AppendArray(c.out, len(found))
	for i := range found {
		if found[i].Found {
			c.out = redcon.AppendBulk(c.out, found[i].Value)
		} else {
			c.out = redcon.AppendNull(c.out)
		}
	}
}

// exists counts the arguments that exist, a key as often as it is named.
func (c *respConn) exists(args [][]byte) {
	if c.tooManyKeys(len(args)) {
		return
	}
	keys, named := distinct(args)
	ctx, cancel := c.deadline()
	defer cancel()
	count := 0
	for i, o := range c.each(ctx, len(keys), func(i int) kv.Request { return c.reads(keys[i]) }) {
		if o.err != nil {
			c.failure(o.err)
			return
		}
		if o.resp.Found {
			count += named[i]
		}
	}
	c.out = redcon.AppendInt(c.out, int64(count))
}

// del counts the keys that existed.
func (c *respConn) del(args [][]byte) {
	if c.tooManyKeys(len(args)) {
		return
	}
	keys, _ := distinct(args)
	ctx, cancel := c.deadline()
	defer cancel()
	outcomes := c.each(ctx, len(keys), func(i int) kv.Request { return kv.Request{Op: kv.OpDelete, Level: c.level, Key: keys[i]} })
	if !c.all("DEL", outcomes) {
		return
	}
	count := 0
	for _, o := range outcomes {
		if o.resp.Found {
			count++
		}
	}
	c.out = redcon.AppendInt(c.out, int64(count))
}

// mset writes every key once: of a key that is named twice the last value counts, as in Redis.
func (c *respConn) mset(args [][]byte) {
	if len(args)%2 != 0 {
		c.error("wrong number of arguments for 'mset' command")
		return
	}
	if c.tooManyKeys(len(args) / 2) {
		return
	}
	last := make(map[string]int, len(args)/2)
	for i := 0; i < len(args); i += 2 {
		last[string(args[i])] = i
	}
	writes := make([]int, 0, len(last))
	for i := 0; i < len(args); i += 2 {
		if last[string(args[i])] == i {
			writes = append(writes, i)
		}
	}
	ctx, cancel := c.deadline()
	defer cancel()
	outcomes := c.each(ctx, len(writes), func(i int) kv.Request {
		return kv.Request{Op: kv.OpPut, Level: c.level, Key: args[writes[i]], Value: args[writes[i]+1]}
	})
	if c.all("MSET", outcomes) {
		c.ok()
	}
}

// each runs n requests on distinct keys at once.
func (c *respConn) each(ctx context.Context, n int, request func(i int) kv.Request) []itemOutcome {
	requests := make([]kv.Request, n)
	for i := range requests {
		requests[i] = request(i)
	}
	return c.s.exec.executeEach(ctx, requests)
}

// all appends the error of a command of which not all writes were applied, with the first failure, and returns whether all were.
func (c *respConn) all(name string, outcomes []itemOutcome) bool {
	var failed *kv.Error
	done := 0
	for i := range outcomes {
		switch err := outcomes[i].err; {
		case err == nil:
			done++
		case failed == nil:
			failed = err
		}
	}
	if failed == nil {
		return true
	}
	c.partial(name, done, len(outcomes), failed)
	return false
}

// partial appends the error of a command that changed some of its keys, which its caller must know.
func (c *respConn) partial(name string, done, keys int, failed *kv.Error) {
	if keys == 1 {
		c.failure(failed)
		return
	}
	text := fmt.Sprintf("%s (%s was applied to %d of %d keys)", failureText(failed), name, done, keys)
	c.out = redcon.AppendError(c.out, text)
}

func (c *respConn) tooManyKeys(keys int) bool {
	if keys <= c.s.cfg.KeysMax {
		return false
	}
	c.error("too many keys: %d in one command, the limit is %d", keys, c.s.cfg.KeysMax)
	return true
}

// distinct returns the keys without repetitions, and how often each was named.
func distinct(args [][]byte) (keys [][]byte, named []int) {
	at := make(map[string]int, len(args))
	for _, key := range args {
		i, seen := at[string(key)]
		if !seen {
			i = len(keys)
			at[string(key)] = i
			keys, named = append(keys, key), append(named, 0)
		}
		named[i]++
	}
	return keys, named
}
