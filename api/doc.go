// Package api is the front of a Caprock node: the HTTP interface, the Redis protocol and the public gRPC service, all of
// them over one Backend.
//
// It owns how a request is spelled on each protocol and how its answer or failure is spelled back: routes, parameters,
// bodies, headers, status codes, limits on what a client may send, and the metrics and access log of what was served.
// It decides nothing about consistency: levels that a request leaves open, quorums and conditions are resolved and
// enforced behind Backend.
//
// Invariants:
//   - A key is exactly the bytes its request spells. No path is cleaned, and no request is redirected.
//   - A request that is refused here never reached the Backend, so nothing was written.
//   - A parameter, header or field that cannot be honoured is an error, never silence.
//   - Every failure says what is known about its outcome.
//
// It never logs keys or values, and never retries, but for commands of the Redis protocol that read a key and write it on condition:
// they start anew when somebody else was quicker.
package api
