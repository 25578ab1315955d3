// Package mutant names bugs that can be compiled into Caprock on purpose: each is one that a trusted system shipped, or
// nearly did (the build tags are mutant_<name>). A test suite is worth what it catches, so `make mutants` builds each of them
// and expects the simulation to find it.
//
// The package holds constants and nothing else. Without a tag Planted is empty, every comparison with it is constantly
// false, and the compiler leaves the planted code out. With two tags at once the package does not compile.
//
// It is for pkg/sim and its runner. No configuration and no flag leads here.
package mutant
