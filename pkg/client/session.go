package client

import (
	"bytes"
	"context"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Session is a sequence of operations that see what those before them wrote and saw, whichever nodes serve them: read your writes,
// monotonic reads, monotonic writes, and writes that follow reads. Its operations are of level causal unless an option says
// Strong. They run one after another; others wait. The token that carries the guarantee may be handed on to another process.
type Session struct {
	client *Client
	// turn has one slot; whoever holds the token in it runs an operation and owns token. A channel, because it is held across I/O.
	turn  chan struct{}
	token []byte
}

// NewSession begins a session, or goes on with one whose Token is given.
func (c *Client) NewSession(token ...[]byte) *Session {
	s := &Session{client: c, turn: make(chan struct{}, 1), token: []byte(kv.SessionNew)}
	if len(token) > 0 && len(token[0]) > 0 {
		s.token = bytes.Clone(token[0])
	}
	return s
}

// Token returns what the session has seen, for NewSession elsewhere. It waits for an operation under way.
func (s *Session) Token() []byte {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	return bytes.Clone(s.token)
}

// Get reads a key, as Client.GetContext does.
func (s *Session) Get(ctx context.Context, key string, options ...Option) (Result, error) {
	return s.do(ctx, kv.Request{Op: kv.OpGet, Key: []byte(key)}, options)
}

// Set writes a key.
func (s *Session) Set(ctx context.Context, key, value string, options ...Option) (Result, error) {
	return s.do(ctx, kv.Request{Op: kv.OpPut, Key: []byte(key), Value: []byte(value)}, options)
}

// Delete removes a key.
func (s *Session) Delete(ctx context.Context, key string, options ...Option) (Result, error) {
	return s.do(ctx, kv.Request{Op: kv.OpDelete, Key: []byte(key)}, options)
}

func (s *Session) do(ctx context.Context, r kv.Request, options []Option) (Result, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return Result{}, abandoned(ctx)
	}
	defer func() { <-s.turn }()
	r.Level, r.Session = kv.LevelCausal, s.token
	res, err := s.client.Do(ctx, r, options...)
	if len(res.Session) > 0 {
		s.token = bytes.Clone(res.Session)
	}
	return res, err
}
