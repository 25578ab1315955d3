package live

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// exitTimeout bounds how long a killed process may take to be gone.
	exitTimeout = 10 * time.Second
	// stateTimeout bounds how long a signal may take to show.
	stateTimeout = 2 * time.Second
)

// process is one life of a node. It is never reused.
type process struct {
	cmd *exec.Cmd
	// exited is closed when it has ended; then cmd.ProcessState says how.
	exited chan struct{}
	// expected is set before the harness does anything that ends the process. An end without it is news.
	expected atomic.Bool
}

// launch starts the command with its output appended to the log.
func launch(cmd *exec.Cmd, logPath string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	// It ends with the process, for which whoever ends the process waits.
	go func() {
		// How it ended is in ProcessState.
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// awaitExit waits until the process has ended.
func (p *process) awaitExit(limit time.Duration) bool {
	select {
	case <-p.exited:
		return true
	case <-time.After(limit):
		return false
	}
}

// signal sends a signal to this process alone.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to pid %d: %w", s, p.pid(), err)
	}
	return nil
}

// kill ends the process by SIGKILL, also a paused one, without waiting.
func (p *process) kill() error {
	p.expected.Store(true)
	return p.signal(syscall.SIGKILL)
}

// end kills the process whatever state it is in, and waits until it is gone.
func (p *process) end() {
	if err := p.kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
	p.awaitExit(exitTimeout)
}

// how describes the end of a process that has ended.
func (p *process) how() string { return p.cmd.ProcessState.String() }

// killedBy reports whether the process, which has ended, was ended by the signal.
func (p *process) killedBy(s syscall.Signal) bool {
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == s
}

// failedByItself reports whether the process, which has ended, chose to exit with an error.
func (p *process) failedByItself() bool {
	return p.cmd.ProcessState.Exited() && p.cmd.ProcessState.ExitCode() != 0
}

// state returns the kernel's letter for the state of the process, "" where there is no /proc.
func (p *process) state() string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid()) + "/stat")
	if err != nil {
		return ""
	}
	return statState(string(raw))
}

// statState finds the state in a line of /proc/PID/stat. The name before it is in brackets and may itself hold any character.
func statState(stat string) string {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}
