//go:build !linux

package main

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from nodes, which this process stops in its own order. Only Linux can also
// signal them when this process is killed; elsewhere `caprock demo --stop` stops those of a demo.
func childAttributes(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
