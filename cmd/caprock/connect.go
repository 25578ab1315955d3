package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/caprockdb/caprock/config"
	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// connection holds the flags of every command that talks to a cluster.
type connection struct {
	endpoints []string
	timeout   time.Duration
}

func (c *connection) addFlags(a *app, fs *pflag.FlagSet) {
	endpoints := []string{"127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"}
	if fromEnv := a.env(config.EnvEndpoints); fromEnv != "" {
		endpoints = strings.Split(fromEnv, ",")
	}
	fs.StringSliceVar(&c.endpoints, "endpoints", endpoints, "gRPC `addresses` of any nodes, comma-separated (or "+config.EnvEndpoints+")")
	fs.DurationVar(&c.timeout, "timeout", kv.RequestTimeout, "how long the whole operation may take")
}

// with runs fn with a client, and closes it.
func (c *connection) with(ctx context.Context, fn func(context.Context, *client.Client) error) error {
	cfg := client.DefaultConfig(c.endpoints)
	cfg.Timeout = c.timeout
	cl, err := client.New(cfg, client.Deps{})
	if err != nil {
		return usageError{fmt.Errorf("--endpoints or --timeout: %w", err)}
	}
	defer cl.Close()
	return fn(ctx, cl)
}
