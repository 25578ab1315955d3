package node

import (
	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// addToSession returns the token of the request's session with what a strong operation has seen or written: a log index, which a
// majority holds.
func (rt *route) addToSession(res *kv.Response) ([]byte, error) {
	s, err := causal.DecodeSession(rt.request.Session)
	if err != nil {
		// Found before anything was done: see checkSession.
		return nil, kv.Errorf(kv.CodeInternal, "the session was lost: %w", err).WithOutcome(res.Outcome)
	}
	if res.Version == 0 {
		return rt.request.Session, nil // there was nothing to see
	}
	hash := causal.KeyHash(rt.request.Key)
	seen, _ := s.Key(rt.partition, hash)
	seen.Partition, seen.Hash = rt.partition, hash
	if rt.request.Op.IsWrite() {
		seen.Dots = nil // the write replaced them
	}
	if seen.Index, seen.Held = max(seen.Index, res.Version), seen.Held || len(seen.Dots) == 0; !seen.Held && s.Full(rt.partition, hash) {
		seen.Dots, seen.Held = nil, true // a strong read has met all that a majority held
	}
	return s.With(seen).Encode(), nil
}

// checkSession refuses a token that no answer gave, before anything is done.
func checkSession(r *kv.Request) error {
	if len(r.Session) == 0 {
		return nil
	}
	if _, err := causal.DecodeSession(r.Session); err != nil {
		return kv.Errorf(kv.CodeBadRequest, "the session cannot be used: %w", err)
	}
	return nil
}
