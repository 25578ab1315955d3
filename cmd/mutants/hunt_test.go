package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// program writes a shell script that stands for a simulation.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sim.test")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o750))
	return path
}

const (
	passes = "echo '--- PASS: TestIt (0.00s)'\n"
	fails  = "echo 'panic: lost'\nexit 1\n"
)

func TestOnlyAFailureThatNeedsTheBugIsACatch(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	chased := func(binary, clean string) result {
		return chase(context.Background(), filepath.Dir(binary), filepath.Dir(clean), []string{"TestIt"}, 2)
	}
	bad, good := program(t, fails), program(t, passes)
	require.Equal(t, result{caught: true, seed: 1, test: "TestIt", symptom: "lost"}, chased(bad, good))
	require.Equal(t, result{symptom: "2 seeds"}, chased(good, good))

	got := chased(bad, bad)
	require.False(t, got.caught)
	require.Contains(t, got.symptom, "TestIt on seed 1 fails without the bug too: lost")

	got = chased(program(t, "exit 0\n"), good)
	require.False(t, got.caught)
	require.Contains(t, got.symptom, "is no test")

	got = chased(filepath.Join(t.TempDir(), "sim.test"), good)
	require.False(t, got.caught)
	require.Contains(t, got.symptom, "cannot be run")
}
