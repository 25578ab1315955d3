package client

import (
	"context"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Get reads a key at the level that its policy decides. Where a policy keeps concurrent versions, it answers the last writer's.
// IsNotFound tells whether the error means that the key does not exist.
func (c *Client) Get(key string) (string, error) {
	r, err := c.GetContext(context.Background(), key, Siblings(kv.SiblingsResolve))
	return string(r.Value), err
}

// Set writes a key at the level that its policy decides.
func (c *Client) Set(key, value string) error {
	_, err := c.SetContext(context.Background(), key, value)
	return err
}

// Delete removes a key at the level that its policy decides. Deleting an absent key succeeds.
func (c *Client) Delete(key string) error {
	_, err := c.DeleteContext(context.Background(), key)
	return err
}

// GetContext reads a key. A key that does not exist is an error for IsNotFound; the result then still carries the Context that
// an eventual write over the deletion should hand back. Where the key has concurrent versions and its policy keeps them,
// Result.Siblings has them all, unless the option Siblings says otherwise.
func (c *Client) GetContext(ctx context.Context, key string, options ...Option) (Result, error) {
	return c.Do(ctx, kv.Request{Op: kv.OpGet, Key: []byte(key)}, options...)
}

// SetContext writes a key.
func (c *Client) SetContext(ctx context.Context, key, value string, options ...Option) (Result, error) {
	return c.Do(ctx, kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value)}, options...)
}

// DeleteContext removes a key. Result.Found tells whether it existed.
func (c *Client) DeleteContext(ctx context.Context, key string, options ...Option) (Result, error) {
	return c.Do(ctx, kv.Request{Op: kv.OpDelete, Key: []byte(key)}, options...)
}

// GetAsync starts reading a key.
func (c *Client) GetAsync(key string, options ...Option) Future {
	return c.DoAsync(kv.Request{Op: kv.OpGet, Key: []byte(key)}, options...)
}

// SetAsync starts writing a key. Writes that are started one after another may be applied in any order.
func (c *Client) SetAsync(key, value string, options ...Option) Future {
	return c.DoAsync(kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value)}, options...)
}

// DeleteAsync starts removing a key.
func (c *Client) DeleteAsync(key string, options ...Option) Future {
	return c.DoAsync(kv.Request{Op: kv.OpDelete, Key: []byte(key)}, options...)
}

// Do runs any operation. The client takes over the request's slices until the operation has ended. When ctx is done first, the
// operation is given up: if it was not sent yet it never will be, otherwise a write's outcome is unknown.
func (c *Client) Do(ctx context.Context, r kv.Request, options ...Option) (Result, error) {
	op := c.start(ctx, r, options)
	if !op.wait(ctx) {
		op.abandon(abandoned(ctx))
		<-op.finished
	}
	return op.answer()
}

// DoAsync starts any operation. The client takes over the request's slices until the operation has ended. It returns at once,
// except that it waits while the client has too much outstanding.
func (c *Client) DoAsync(r kv.Request, options ...Option) Future {
	return Future{op: c.start(context.Background(), r, options)}
}

// Future is an operation under way. It ends by itself, at its deadline at the latest, whether or not anybody waits for it.
type Future struct{ op *call }

// Wait returns the operation's result. It may be called by several goroutines and again. When ctx is done first, Wait returns an
// error, and the operation goes on.
func (f Future) Wait(ctx context.Context) (Result, error) {
	if f.op.wait(ctx) {
		return f.op.answer()
	}
	err := abandoned(ctx)
	if f.op.write() {
		err = err.WithOutcome(kv.OutcomeUnknown)
	}
	return Result{}, err
}

// Done is closed once the operation has ended.
func (f Future) Done() <-chan struct{} { return f.op.finished }
