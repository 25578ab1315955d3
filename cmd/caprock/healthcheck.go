package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/caprockdb/caprock/pkg/kv"
)

// checkReady asks a node, or the gateway, whether it serves the level ("" for all of them). An error says why not.
func checkReady(ctx context.Context, address, level string) error {
	u := url.URL{Scheme: "http", Host: address, Path: "/readyz"}
	if level != "" {
		u.RawQuery = url.Values{"consistency": {level}}.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return kv.Errorf(kv.CodeNotReady, "%w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return kv.Errorf(kv.CodeNotReady, "%w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var p problem
	if json.Unmarshal(body, &p) == nil && p.Detail != "" {
		return kv.Errorf(kv.CodeNotReady, "%s", p.Detail)
	}
	return kv.Errorf(kv.CodeNotReady, "%s answers %s", address, resp.Status)
}

// newHealthcheckCommand is for images that hold nothing but this binary, so that nothing else could ask.
func newHealthcheckCommand(*app) *cobra.Command {
	var (
		address, level string
		timeout        time.Duration
	)
	cmd := &cobra.Command{
		Use:    "healthcheck",
		Short:  "Exit with 0 if a node or the gateway is ready, else with 5",
		Hidden: true,
		Args:   usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if err := checkReady(ctx, address, level); err != nil {
				return fmt.Errorf("%s is not ready: %w", address, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "http", "127.0.0.1:8081", "HTTP `address` to ask")
	cmd.Flags().StringVarP(&level, "consistency", "c", "", "ask about this `level` only")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}
