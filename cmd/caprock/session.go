package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// sessionTokenMin is the length of the shortest token's text. What is shorter, or is no base64url, names a file.
const sessionTokenMin = 30

// sessionFlag is the flag --session: a token, "new", or a file that holds the token from one command to the next.
type sessionFlag struct {
	value string
	file  bool
}

// option reads the flag. Without a level the operation is one of level causal.
func (s *sessionFlag) option(level string) (client.Option, error) {
	token, err := s.token()
	if err != nil {
		return nil, err
	}
	return client.SessionToken(token, level == ""), nil
}

func (s *sessionFlag) token() ([]byte, error) {
	if s.value == kv.SessionNew {
		return []byte(kv.SessionNew), nil
	}
	if token, err := base64.RawURLEncoding.DecodeString(s.value); err == nil && len(s.value) >= sessionTokenMin {
		return token, nil
	}
	s.file = true
	text, err := os.ReadFile(s.value)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []byte(kv.SessionNew), nil
	case err != nil:
		return nil, fmt.Errorf("--session: %w", err)
	}
	token, err := base64.RawURLEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(token) == 0 {
		return nil, fmt.Errorf("--session: %s holds no session token", s.value)
	}
	return token, nil
}

// keep stores the session's next token where the last one came from; one that was given on the command line is told on stderr.
func (s *sessionFlag) keep(a *app, token []byte) error {
	if s.value == "" || len(token) == 0 {
		return nil
	}
	text := base64.RawURLEncoding.EncodeToString(token)
	if !s.file {
		fmt.Fprintln(a.stderr, "session:", text)
		return nil
	}
	if err := os.WriteFile(s.value, []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("--session: the operation was done, but its token could not be kept: %w", err)
	}
	return nil
}
