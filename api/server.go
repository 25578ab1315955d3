package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
)

// Server is the HTTP front with its listener's limits and its shutdown.
type Server struct {
	handler *handler
	http    *http.Server
}

// NewServer returns the HTTP front, ready to serve.
func NewServer(cfg Config, deps Deps) (*Server, error) {
	h, err := newHandler(cfg, deps)
	if err != nil {
		return nil, err
	}
	return &Server{
		handler: h,
		http: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: cfg.ReadHeaderTimeout,
			ReadTimeout:       cfg.ReadTimeout,
			WriteTimeout:      cfg.WriteTimeout,
			IdleTimeout:       cfg.IdleTimeout,
			MaxHeaderBytes:    cfg.HeaderBytesMax,
			// What net/http logs is what clients do wrong on the wire: no reason to wake anybody.
			ErrorLog: slog.NewLogLogger(deps.Logger.Handler(), slog.LevelDebug),
			// OPTIONS * is answered like any route that does not exist.
			DisableGeneralOptionsHandler: true,
		},
	}, nil
}

// Handler returns what serves the requests, for a listener of the caller's own.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve accepts connections until Shutdown or Close, and then returns nil. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Drain makes /readyz and /health answer 503 from now on, while requests are still served: a load balancer gets to look
// elsewhere before the listener closes.
func (s *Server) Drain() { s.handler.draining.Store(true) }

// Shutdown stops accepting and waits until the requests in flight are answered, or the context is done: then it cuts
// what is left and returns the context's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	err := s.http.Shutdown(ctx)
	if err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}
