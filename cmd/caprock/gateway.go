package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

const (
	gatewayAddress = ":8080"
	gatewayDrain   = 10 * time.Second
)

func newGatewayCommand(a *app) *cobra.Command {
	var (
		address string
		nodes   []string
	)
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a stateless front door that hands each HTTP request to a node that is ready",
		Example: `  caprock gateway --nodes 127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083
  curl localhost:8080/kv/hello`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			log := slog.New(slog.NewTextHandler(a.stderr, nil))
			g, err := newGateway(nodes, log, func(address string, ready bool) {
				log.Info("node changed", "address", address, "ready", ready)
			})
			if err != nil {
				return usageError{err}
			}
			l, err := listen("http", address)
			if err != nil {
				return err
			}
			log.Info("gateway listens", "address", l.Addr().String(), "nodes", nodes)
			return runGateway(ctx, l, g)
		},
	}
	cmd.Flags().StringVar(&address, "http", gatewayAddress, "`address` to listen on")
	cmd.Flags().StringSliceVar(&nodes, "nodes", []string{"127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"},
		"HTTP `addresses` of the nodes, comma-separated")
	return cmd
}

// runGateway serves g on l until ctx is done.
func runGateway(ctx context.Context, l net.Listener, g *gateway) error {
	s := &http.Server{
		Handler:           g,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       gatewayAnswerTimeout,
		WriteTimeout:      2 * gatewayAnswerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.watch(ctx) })
	group.Go(func() error { return serve(ctx, l, s, gatewayDrain) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}
