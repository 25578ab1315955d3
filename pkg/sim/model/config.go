package model

// Kind is a kind of operation.
type Kind uint8

// The kinds of operations. All but Eventual are strong.
const (
	Eventual Kind = iota
	Get
	Put
	CompareAndSet
	Delete
)

// anywhere lets an operation begin at any replica that can take it.
const anywhere = replicas

// Op is an operation of a mix.
type Op struct {
	Kind Kind
	// At is the replica that it begins at, or anywhere. A strong operation also needs a leader there, except a Get when
	// FollowerReads is set.
	At uint8
	// After is 1 + the operation that must have returned before, 0 for none.
	After uint8
	// Expects is 1 + the operation whose value a CompareAndSet expects, 0 for the key being absent, anything for whatever
	// it finds.
	Expects uint8
	// Lost are the replicas, as bits, that no message of an eventual write reaches.
	Lost uint8
}

// anything makes a CompareAndSet expect what it finds.
const anything = 0xff

// Config is one search: a mix of operations, the faults to try, and the rules in force.
type Config struct {
	Rules Rules
	// Writes are the eventual writes, Strong the strong operations. In After and Expects a strong operation i counts
	// as writesMax + i.
	Writes []Op
	Strong []Op
	// Clocks is where each node's clock starts.
	Clocks [replicas]uint8
	// Elections, Crashes and Repairs bound how many there are. A repair copies one replica's set to another.
	Elections, Crashes, Repairs uint8
	// Victim is the replica that crashes.
	Victim uint8
	// Hints lets every message of an eventual write arrive as a hint too, long after.
	Hints bool
	// FollowerReads lets gets begin at any replica.
	FollowerReads bool
	// Rising also checks that the stamp of the settled value never falls.
	Rising bool
}

// initial is the state in which every replica has applied one empty entry of term 1, whose leader is replica 0.
func (c *Config) initial() State {
	var s State
	s.entries = 1
	s.log[1] = entry{pos: position(1, 1)}
	for i := range s.node {
		s.node[i] = replica{term: 1, last: 1, commit: 1, clock: c.Clocks[i]}
	}
	s.node[0].leads = 1
	s.elections, s.crashes, s.repairs = c.Elections, c.Crashes, c.Repairs
	if s.crashes > 0 {
		s.disk = s.node[c.Victim]
	}
	return s
}

func (c *Config) opOf(id uint8) Op {
	if id < writesMax {
		return c.Writes[id]
	}
	return c.Strong[id-writesMax]
}

// valueOf is the value that an operation writes: its own, so that what a read returns names its origin.
func valueOf(id uint8) uint8 { return id + 1 }

// absent is the value of a key that nobody wrote, or that was deleted.
const absent uint8 = 0

func position(term, index uint8) uint8 { return term<<4 | index }
func termOf(pos uint8) uint8           { return pos >> 4 }
func indexOf(pos uint8) uint8          { return pos & 0xf }
