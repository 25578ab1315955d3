// Package kvwire encodes and decodes the batches of the public stream by hand, byte for byte as the generated code of kvpb
// would read and write them.
//
// It owns the mapping between the messages of kv.proto and the vocabulary of package kv. The generated code costs 3 µs of CPU
// for an operation and its result (marshalling and unmarshalling both, 100-byte values) and allocates ten objects; the
// whole path of an operation through client and server has to cost less than that. Everything else (unary calls, tools, other
// languages) goes through kvpb, and the tests compare the two.
//
// Invariants: what kvpb encodes decodes here to the same operation or result, and the reverse. A field or value that this
// version does not know is reported, never dropped: an operation whose meaning is only half understood must be refused.
package kvwire
