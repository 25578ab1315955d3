package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/caprockdb/caprock/pkg/client"
)

// Bounds of every HTTP server of this binary.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	headerBytesMax    = 64 << 10
)

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. The second one exits at once: whoever asks
// twice does not want to wait. stop must be called when the work is done.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() {
		for range 2 {
			select {
			case <-signals:
				if ctx.Err() != nil {
					os.Exit(client.ExitError)
				}
				cancel()
			case <-done:
				return
			}
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		waiter.Wait()
		cancel()
	}
}

// listen opens a TCP listener. key is the setting that named the address, for the error.
func listen(key, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--%s: %s is in use: stop what listens there or choose another address", key, address)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s: cannot listen on %s: %w", key, address, err)
	}
	return l, nil
}

// serve answers requests on l until ctx is done, then finishes those in flight, for at most drain.
func serve(ctx context.Context, l net.Listener, s *http.Server, drain time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("HTTP server: %w", err)
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := s.Shutdown(deadline); err != nil {
		// The rest did not finish in time; their clients learn it from the broken connection.
		_ = s.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP server: %w", err)
	}
	return nil
}
