package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// detachDemo starts the same demo in the background and returns when it is ready.
func detachDemo(a *app, cfg demoConfig) error {
	dir, err := filepath.Abs(cfg.dataDir)
	if err != nil {
		return err
	}
	if pid, held := lockHolder(demoLockPath(dir)); held {
		fmt.Fprintf(a.stdout, "The demo cluster in %s already runs (pid %d):\n", cfg.dataDir, pid)
		addresses, err := os.ReadFile(demoAddressPath(dir))
		if err != nil {
			return fmt.Errorf("where it listens: %w", err)
		}
		_, err = a.stdout.Write(addresses)
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	logPath := filepath.Join(dir, "demo.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	defer log.Close()
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(binary, "demo",
		"--nodes", strconv.Itoa(cfg.nodes), "--data-dir", dir,
		"--http-port", strconv.Itoa(cfg.httpPort), "--grpc-port", strconv.Itoa(cfg.grpcPort),
		"--gossip-port", strconv.Itoa(cfg.gossip), "--resp-port", strconv.Itoa(cfg.respPort),
		"--ready-fd", "3") // the first of ExtraFiles
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write}
	cmd.Env = a.environ
	// A session of its own: the terminal's Ctrl-C and its end are not for the cluster.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = write.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	message, err := io.ReadAll(read)
	if err != nil {
		return fmt.Errorf("wait for the background process: %w", err)
	}
	text, ready := strings.CutPrefix(string(message), demoReadyLine)
	if !ready {
		_ = cmd.Wait()
		if text == "" {
			text = "the background process died; see " + logPath
		}
		return errors.New(text)
	}
	fmt.Fprint(a.stdout, text)
	fmt.Fprintf(a.stdout, "\nIt runs in the background (pid %d); stop it with: %s\n", cmd.Process.Pid,
		shellLine([]string{binary, "demo", "--data-dir", dir, "--stop"}))
	return cmd.Process.Release()
}

// stopDemo stops a demo that runs in the background, and nodes of it that were started again by hand. The data stays.
func stopDemo(a *app, cfg demoConfig) error {
	dir, err := filepath.Abs(cfg.dataDir)
	if err != nil {
		return err
	}
	stopped := 0
	// The demo goes first, or it would report each node's end as a death.
	locks := []string{demoLockPath(dir)}
	for i := range demoNodesMax {
		locks = append(locks, nodeLockPath(dir, nodeName(i+1)))
	}
	for _, path := range locks {
		pid, held := lockHolder(path)
		if !held {
			continue
		}
		stopped++
		if err := stopHolder(path, pid, 2*demoStopTimeout); err != nil {
			return err
		}
	}
	if stopped == 0 {
		fmt.Fprintf(a.stdout, "No demo cluster runs in %s.\n", cfg.dataDir)
		return nil
	}
	fmt.Fprintf(a.stdout, "Stopped the demo cluster in %s; its data stays there.\n", cfg.dataDir)
	return nil
}

// stopHolder asks the process that holds the lock to stop, and waits until the lock is free. The lock proves that the
// pid is that of the right process, which a pid file never could.
func stopHolder(path string, pid int, timeout time.Duration) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop pid %d: %w", pid, err)
	}
	deadline := time.Now().Add(timeout)
	for {
		now, held := lockHolder(path)
		if !held || now != pid {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("pid %d did not stop within %v: look into the logs beside %s, or end it with: kill -9 %d", pid, timeout, path, pid)
		}
		time.Sleep(demoStopPoll)
	}
}
