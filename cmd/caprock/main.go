// Command caprock is the whole of Caprock in one binary: a node, a demo cluster, the gateway and the tools that talk to
// a running cluster.
//
// It owns the process: arguments, signals, exit codes, listeners and what is written to the terminal. Data goes to
// standard output, messages to standard error. Everything else is wiring; what it wires lives in the packages below.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}
