//go:build !linux

package main

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from the nodes, which the demo stops in its own order. Only Linux can also
// stop them when the demo is killed; elsewhere `caprock demo --stop` does.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
