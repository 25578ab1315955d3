package client

// table finds the operation that a result belongs to. An id is a slot's index and the slot's generation, so that a lookup
// is an array access, and a result that comes twice, or after its operation was given up, finds nothing.
// A map did the same at ten times the cost. Not safe for concurrent use.
type table struct {
	slots []slot
	free  []uint32 // indexes of slots without a call
}

// slot holds one operation under way.
// Invariant: generation grows each time the slot is emptied, so no two operations of a table share an id.
type slot struct {
	call       *call
	generation uint32
}

func (t *table) len() int { return len(t.slots) - len(t.free) }

// add stores the call and returns its id, which is never 0.
func (t *table) add(c *call) uint64 {
	if len(t.free) == 0 {
		t.slots = append(t.slots, slot{generation: 1})
		t.free = append(t.free, uint32(len(t.slots)-1))
	}
	index := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.slots[index].call = c
	return uint64(t.slots[index].generation)<<32 | uint64(index)
}

// take removes and returns the call with the id, nil when there is none.
func (t *table) take(id uint64) *call {
	index, generation := uint32(id), uint32(id>>32)
	if uint64(index) >= uint64(len(t.slots)) || t.slots[index].generation != generation {
		return nil
	}
	return t.clear(index)
}

// clear empties the slot and returns what was in it.
func (t *table) clear(index uint32) *call {
	c := t.slots[index].call
	if c != nil {
		t.slots[index] = slot{generation: t.slots[index].generation + 1}
		t.free = append(t.free, index)
	}
	return c
}

// takeAll empties the table and appends what was in it to dst.
func (t *table) takeAll(dst []*call) []*call {
	for i := range t.slots {
		if c := t.clear(uint32(i)); c != nil {
			dst = append(dst, c)
		}
	}
	return dst
}

// drop removes every call for which gone holds.
func (t *table) drop(gone func(*call) bool) {
	for i := range t.slots {
		if c := t.slots[i].call; c != nil && gone(c) {
			t.clear(uint32(i))
		}
	}
}
