// Package kvpb is the public gRPC interface, generated from api/proto/caprock/v1/kv.proto. It holds no code of its own;
// the stream of operations is encoded by hand in package kvwire.
package kvpb
