// Package peerpb is the gRPC interface between nodes, generated from api/proto. It holds no code of its own; what its
// messages carry is encoded by hand in package transport.
package peerpb
