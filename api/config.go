package api

import (
	"fmt"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Config holds the limits and time-outs of the HTTP front.
type Config struct {
	// Limits bounds keys and values, in bytes.
	Limits kv.Limits
	// RequestTimeout is the deadline of a request that names none.
	RequestTimeout time.Duration
	// RequestTimeoutMax is the longest deadline that a request may ask for.
	RequestTimeoutMax time.Duration
	// ReadHeaderTimeout bounds how long a client may take to send a request's header.
	ReadHeaderTimeout time.Duration
	// ReadTimeout bounds how long a client may take to send a whole request.
	ReadTimeout time.Duration
	// WriteTimeout bounds the time from the end of the header to the end of the answer. It must exceed
	// RequestTimeoutMax, or answers to slow requests are cut off.
	WriteTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request.
	IdleTimeout time.Duration
	// HeaderBytesMax bounds a request's header, request line included. A key of 4 KiB needs up to 12 KiB there.
	HeaderBytesMax int
}

// DefaultConfig returns the limits of a production node.
func DefaultConfig() Config {
	return Config{
		Limits:            kv.DefaultLimits(),
		RequestTimeout:    kv.RequestTimeout,
		RequestTimeoutMax: kv.RequestTimeoutMax,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      90 * time.Second,
		IdleTimeout:       2 * time.Minute,
		HeaderBytesMax:    64 << 10,
	}
}

// Validate reports the first setting that makes no sense.
func (c Config) Validate() error {
	switch {
	case c.Limits.KeyBytesMax < 1 || c.Limits.ValueBytesMax < 1:
		return fmt.Errorf("api: limits of %d key bytes and %d value bytes: both must be at least 1",
			c.Limits.KeyBytesMax, c.Limits.ValueBytesMax)
	case c.RequestTimeout <= 0 || c.RequestTimeout > c.RequestTimeoutMax:
		return fmt.Errorf("api: request timeout %v: it must be above 0 and at most the maximum of %v",
			c.RequestTimeout, c.RequestTimeoutMax)
	case c.ReadHeaderTimeout <= 0 || c.ReadTimeout <= 0 || c.IdleTimeout <= 0:
		return fmt.Errorf("api: read header, read and idle timeouts of %v, %v and %v: all must be above 0",
			c.ReadHeaderTimeout, c.ReadTimeout, c.IdleTimeout)
	case c.WriteTimeout <= c.RequestTimeoutMax:
		return fmt.Errorf("api: write timeout %v: it must exceed the longest request timeout of %v",
			c.WriteTimeout, c.RequestTimeoutMax)
	case c.HeaderBytesMax < 3*c.Limits.KeyBytesMax:
		return fmt.Errorf("api: %d header bytes: a key of %d bytes needs up to three times as many",
			c.HeaderBytesMax, c.Limits.KeyBytesMax)
	}
	return nil
}
