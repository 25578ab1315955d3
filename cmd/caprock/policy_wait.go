package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// policyPoll is how often `caprock policy --wait` asks how far a switch of lanes is.
const policyPoll = 500 * time.Millisecond

// laneSwitch is a switch of lanes as the node tells of it.
type laneSwitch struct {
	Prefix, State, Phase, Problem string
	PrefixEncoding                string   `json:"prefix_encoding"`
	WaitingFor                    []string `json:"waiting_for"`
	Partitions, Hints, Conflicts  int
	PartitionsSwept               int `json:"partitions_swept"`
	SettledKeys                   int `json:"settled_keys"`
}

// progress says in a line how far the switch is.
func (s *laneSwitch) progress() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q is %s", s.Prefix, s.State)
	if s.Phase != "" {
		fmt.Fprintf(&b, ", phase %s", s.Phase)
	}
	if len(s.WaitingFor) > 0 {
		fmt.Fprintf(&b, ", waiting for %s", strings.Join(s.WaitingFor, ", "))
	}
	if s.Partitions > 0 {
		fmt.Fprintf(&b, ", %d of %d partitions swept, %d keys settled", s.PartitionsSwept, s.Partitions, s.SettledKeys)
	}
	if s.Hints > 0 {
		fmt.Fprintf(&b, ", %d hints left", s.Hints)
	}
	if s.Conflicts > 0 {
		fmt.Fprintf(&b, ", %d keys have concurrent versions that a strong write has to replace", s.Conflicts)
	}
	if s.Problem != "" {
		fmt.Fprintf(&b, ": %s", s.Problem)
	}
	return b.String()
}

// awaitLanes returns once no switch of the prefix's lanes, or of a longer prefix's, is under way. It tells of progress on stderr.
func awaitLanes(ctx context.Context, a *app, c *connection, prefix string) error {
	told := ""
	for {
		raw, err := c.admin(ctx, http.MethodGet, "/admin/policies", nil)
		if err != nil {
			return err
		}
		under, err := switchesUnder(raw, prefix)
		if err != nil {
			return err
		}
		if len(under) == 0 {
			return nil
		}
		lines := make([]string, len(under))
		for i := range under {
			lines[i] = under[i].progress()
		}
		if now := strings.Join(lines, "\n"); now != told {
			told = now
			fmt.Fprintln(a.stderr, now)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(policyPoll):
		}
	}
}

// switchesUnder returns the switches of prefixes that start with this one, from the list of all policies. One whose prefix is not
// text counts as one of them.
func switchesUnder(raw []byte, prefix string) ([]laneSwitch, error) {
	var list struct {
		Policies []struct{ Switches []laneSwitch }
		Switches []laneSwitch
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("the node's answer: %w", err)
	}
	all := list.Switches
	for _, p := range list.Policies {
		all = append(all, p.Switches...)
	}
	var out []laneSwitch
	for _, s := range all {
		if s.PrefixEncoding != "" || strings.HasPrefix(s.Prefix, prefix) {
			out = append(out, s)
		}
	}
	return out, nil
}
