// Package kv is the vocabulary of Caprock: the nouns that every other package shares.
//
// It owns keys' limits, identifiers (node, partition, group, epoch), consistency levels, quorums, requests, responses,
// outcomes and errors with their codes, and the wire form in which nodes hand a request to one another. It holds no
// behaviour of either lane, does no I/O, and imports no other package of Caprock.
package kv
