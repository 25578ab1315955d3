package main

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from the nodes, which the demo stops in its own order, and stops them when
// the demo is killed, so that none is left behind.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
