package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// delayMax bounds a rule's delay. What is held back takes memory.
const delayMax = time.Minute

var errTooManyRules = fmt.Errorf("at most %d fault rules can be in force", rulesMax)

// Direction says which way the frames go that a rule applies to, seen from the node that has the rule.
type Direction string

// The directions.
const (
	DirectionIn   Direction = "in"
	DirectionOut  Direction = "out"
	DirectionBoth Direction = "both"
)

// Class is a class of traffic.
type Class string

// The classes. Data is everything but Raft's messages: requests of the eventual lane, forwarded operations, exchanges,
// metadata commands, and all replies.
const (
	ClassRaft Class = "raft"
	ClassData Class = "data"
	ClassAll  Class = "all"
)

func (k kind) class() Class {
	if k == kindRaft {
		return ClassRaft
	}
	return ClassData
}

// Rule is one fault. In JSON: {"peer":"*"|ID,"direction":"in|out|both","class":"raft|data|all","drop":0…1,
// "duplicate":0…1,"delay":"50ms","cut":true}; peer, direction and class default to everything.
type Rule struct {
	// Peer is the other node; NoNode, "*" in JSON, is every other node.
	Peer      kv.NodeID
	Direction Direction // "" is DirectionBoth
	Class     Class     // "" is ClassAll
	// Drop and Duplicate are the probabilities that a frame vanishes, or comes twice. A request that comes twice is
	// handled once.
	Drop      float64
	Duplicate float64
	// Delay holds each frame back. At most a minute.
	Delay time.Duration
	// Cut drops every frame.
	Cut bool
}

// Validate reports what is wrong with the rule.
func (r Rule) Validate() error {
	switch {
	case r.Direction != "" && r.Direction != DirectionIn && r.Direction != DirectionOut && r.Direction != DirectionBoth:
		return fmt.Errorf("unknown direction %q: in, out or both", r.Direction)
	case r.Class != "" && r.Class != ClassRaft && r.Class != ClassData && r.Class != ClassAll:
		return fmt.Errorf("unknown class %q: raft, data or all", r.Class)
	case !(r.Drop >= 0 && r.Drop <= 1):
		return fmt.Errorf("drop is %v: a probability between 0 and 1", r.Drop)
	case !(r.Duplicate >= 0 && r.Duplicate <= 1):
		return fmt.Errorf("duplicate is %v: a probability between 0 and 1", r.Duplicate)
	case r.Delay < 0 || r.Delay > delayMax:
		return fmt.Errorf("delay is %v: between 0 and %v", r.Delay, delayMax)
	case r.Drop == 0 && r.Duplicate == 0 && r.Delay == 0 && !r.Cut:
		return errors.New("the rule does nothing: give drop, duplicate, delay or cut")
	}
	return nil
}

func (r *Rule) matches(peer kv.NodeID, d Direction, c Class) bool {
	return (r.Peer == kv.NoNode || r.Peer == peer) &&
		(r.Direction == "" || r.Direction == DirectionBoth || r.Direction == d) &&
		(r.Class == "" || r.Class == ClassAll || r.Class == c)
}

// ruleJSON is the rule as users write it.
type ruleJSON struct {
	Peer      json.RawMessage `json:"peer,omitempty"`
	Direction Direction       `json:"direction,omitempty"`
	Class     Class           `json:"class,omitempty"`
	Drop      float64         `json:"drop,omitempty"`
	Duplicate float64         `json:"duplicate,omitempty"`
	Delay     string          `json:"delay,omitempty"`
	Cut       bool            `json:"cut,omitempty"`
}

// MarshalJSON implements json.Marshaler. It spells out what was left to default.
func (r Rule) MarshalJSON() ([]byte, error) {
	out := ruleJSON{
		Peer: json.RawMessage(`"*"`), Direction: DirectionBoth, Class: ClassAll,
		Drop: r.Drop, Duplicate: r.Duplicate, Cut: r.Cut,
	}
	if r.Peer != kv.NoNode {
		out.Peer = strconv.AppendUint(nil, uint64(r.Peer), 10)
	}
	if r.Direction != "" {
		out.Direction = r.Direction
	}
	if r.Class != "" {
		out.Class = r.Class
	}
	if r.Delay != 0 {
		out.Delay = r.Delay.String()
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler. An unknown field is an error: a fault that silently does nothing makes a
// test pass that proves nothing.
func (r *Rule) UnmarshalJSON(b []byte) error {
	var in ruleJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return err
	}
	out := Rule{
		Direction: in.Direction, Class: in.Class, Drop: in.Drop, Duplicate: in.Duplicate, Cut: in.Cut,
	}
	if in.Delay != "" {
		var err error
		if out.Delay, err = time.ParseDuration(in.Delay); err != nil {
			return fmt.Errorf("delay is %q: a duration such as \"50ms\"", in.Delay)
		}
	}
	peer := string(bytes.Trim(in.Peer, `"`))
	if peer != "" && peer != "*" {
		id, err := strconv.ParseUint(peer, 10, 64)
		if err != nil || id == 0 {
			return fmt.Errorf("peer is %s: \"*\" or a node id", in.Peer)
		}
		out.Peer = kv.NodeID(id)
	}
	*r = out
	return out.Validate()
}
