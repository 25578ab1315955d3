package main

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from nodes, which this process stops in its own order, and sends them a
// signal when this process is killed, so that none is left behind.
func childAttributes(orphaned syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: orphaned}
}
