package client

import (
	"time"

	"github.com/caprockdb/caprock/api/kvwire"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Result answers an operation. Its slices belong to the caller, except that Replicas may be shared with other results and must
// not be changed.
type Result struct {
	// Value is what was read; empty where Siblings tells all versions.
	Value []byte
	// Found: the key exists, or for a delete, existed.
	Found bool
	// Settled is false while the value has not entered the Raft order.
	Settled bool
	// Level is the level that was achieved.
	Level kv.Level
	// Outcome is that of a write.
	Outcome kv.Outcome
	// Acks counts the replicas that acknowledged, or answered.
	Acks int
	// Hinted is how many of Acks are hints that other nodes keep for replicas, in a sloppy write.
	Hinted int
	// Version is the Raft index of the strong write, for IfVersion; 0 for a value that has only been written eventually.
	Version uint64
	// Staleness is how stale the answer is at most, at level bounded: it has all that was acknowledged that long before the replica
	// answered.
	Staleness time.Duration
	// Context covers everything this result reflects, for the option Context of a later eventual write.
	Context []byte
	// Session is the token of the session after this operation; see NewSession.
	Session []byte
	// Timestamp is the wall-clock part of the version's hybrid clock; zero when nothing was found.
	Timestamp time.Time
	// Siblings holds all concurrent versions, when there is more than one and the policy and the operation want them.
	Siblings []Sibling
	// Concurrent is the number of versions that Value was chosen from, when more than one.
	Concurrent int
	// Coordinator and Replicas name the nodes that worked on the operation.
	Coordinator string
	Replicas    []string
}

// Sibling is one of several concurrent versions of a key.
type Sibling struct {
	Value     []byte
	Deleted   bool
	Timestamp time.Time
	Node      string
}

// String returns the value.
func (r Result) String() string { return string(r.Value) }

// fill sets the result from the wire's, whose slices it copies: they alias a message that holds up to 1,000 other results,
// which must not stay in memory for as long as the caller keeps one of them.
func (r *Result) fill(in *kvwire.Result, replicas []string) {
	*r = Result{
		Found: in.Found, Settled: in.Settled, Level: in.Level, Outcome: in.Outcome, Acks: in.Acks, Hinted: in.Hinted, Version: in.Version,
		Concurrent: in.Concurrent, Coordinator: in.Coordinator, Replicas: replicas,
		Staleness: time.Duration(in.StalenessMillis) * time.Millisecond,
	}
	if n := len(in.Value); n+len(in.Context) > 0 {
		both := make([]byte, n+len(in.Context))
		copy(both, in.Value)
		copy(both[n:], in.Context)
		if n > 0 {
			r.Value = both[:n:n]
		}
		if len(both) > n {
			r.Context = both[n:]
		}
	}
	if len(in.Session) > 0 {
		r.Session = append([]byte(nil), in.Session...)
	}
	r.Timestamp = timeOf(in.TimestampMillis)
	if len(in.Siblings) == 0 {
		return
	}
	r.Siblings = make([]Sibling, len(in.Siblings))
	for i, s := range in.Siblings {
		r.Siblings[i] = Sibling{
			Value: append([]byte(nil), s.Value...), Deleted: s.Deleted, Timestamp: timeOf(s.TimestampMillis), Node: s.Node,
		}
	}
}

func timeOf(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}
