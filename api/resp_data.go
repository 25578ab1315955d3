package api

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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
	return c.s.exec.execute(ctx, &kv.Request{Op: kv.OpGet, Level: c.level, Siblings: kv.SiblingsResolve, Key: key})
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

func (c *respConn) write(ctx context.Context, key, value []byte, ttl time.Duration) (kv.Response, *kv.Error) {
	return c.s.exec.execute(ctx, &kv.Request{Op: kv.OpPut, Level: c.level, Key: key, Value: value, TTL: ttl})
}

func (c *respConn) mget(args [][]byte) {
	if c.tooManyKeys(len(args)) {
		return
	}
	var size atomic.Int64
	found := make([]kv.Response, len(args))
	_, failed := c.each(len(args), func(ctx context.Context, i int) (err *kv.Error) {
		if size.Load() > int64(c.s.cfg.ReplyBytesMax) {
			return kv.Errorf(kv.CodeBadRequest, "the values of one MGET exceed %d bytes; ask for fewer keys", c.s.cfg.ReplyBytesMax)
		}
		found[i], err = c.read(ctx, args[i])
		size.Add(int64(len(found[i].Value)))
		return err
	})
	if failed != nil {
		c.failure(failed)
		return
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
	var count atomic.Int64
	_, failed := c.each(len(keys), func(ctx context.Context, i int) *kv.Error {
		resp, err := c.read(ctx, keys[i])
		if err == nil && resp.Found {
			count.Add(int64(named[i]))
		}
		return err
	})
	if failed != nil {
		c.failure(failed)
		return
	}
	c.out = redcon.AppendInt(c.out, count.Load())
}

// del counts the keys that existed.
func (c *respConn) del(args [][]byte) {
	if c.tooManyKeys(len(args)) {
		return
	}
	keys, _ := distinct(args)
	var count atomic.Int64
	done, failed := c.each(len(keys), func(ctx context.Context, i int) *kv.Error {
		resp, err := c.s.exec.execute(ctx, &kv.Request{Op: kv.OpDelete, Level: c.level, Key: keys[i]})
		if err == nil && resp.Found {
			count.Add(1)
		}
		return err
	})
	if failed != nil {
		c.partial("DEL", done, len(keys), failed)
		return
	}
	c.out = redcon.AppendInt(c.out, count.Load())
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
	done, failed := c.each(len(writes), func(ctx context.Context, i int) *kv.Error {
		_, err := c.write(ctx, args[writes[i]], args[writes[i]+1], 0)
		return err
	})
	if failed != nil {
		c.partial("MSET", done, len(writes), failed)
		return
	}
	c.ok()
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

// each calls run for 0 to n−1, FanoutMax at a time, under one deadline. It returns how many succeeded, and the failure
// with the lowest index. Every index is tried: stopping at the first failure would leave more keys in doubt, not fewer.
func (c *respConn) each(n int, run func(ctx context.Context, i int) *kv.Error) (done int, failed *kv.Error) {
	ctx, cancel := c.deadline()
	defer cancel()
	failures := make([]*kv.Error, n)
	var (
		next    atomic.Int64
		workers sync.WaitGroup
		bug     atomic.Pointer[any]
	)
	work := func() {
		defer func() { // a panic goes to the connection's goroutine, which answers for it
			if cause := recover(); cause != nil {
				bug.Store(&cause)
			}
		}()
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			failures[i] = run(ctx, i)
		}
	}
	for range min(n, c.s.cfg.FanoutMax) - 1 {
		workers.Go(work)
	}
	work()
	workers.Wait()
	if cause := bug.Load(); cause != nil {
		panic(*cause)
	}
	for _, failure := range failures {
		if failure == nil {
			done++
		} else if failed == nil {
			failed = failure
		}
	}
	return done, failed
}
