package transport

// wheelSlots is the number of slots. Calls whose tick is further ahead share a slot with nearer ones and are looked at
// once a turn: with 10 ms ticks, every 10 s.
const wheelSlots = 1024

// wheel holds the calls of a peer by the tick at which they are overdue. Adding and removing one is a few pointer
// writes, which a heap's logarithm or a timer a call is not; a reply nearly always removes the call before its tick.
type wheel struct {
	slots [wheelSlots]*call
	// tick is the last one that was swept. Invariant: no call in the wheel is overdue at it.
	tick  uint64
	count int
}

// add puts the call in; it is overdue once the wheel advances to its tick. A tick that was swept already counts as the
// next one.
func (w *wheel) add(c *call, tick uint64) {
	c.tick = max(tick, w.tick+1)
	head := &w.slots[c.tick%wheelSlots]
	c.prev, c.next = nil, *head
	if c.next != nil {
		c.next.prev = c
	}
	*head = c
	w.count++
}

// remove takes out a call that is in the wheel.
func (w *wheel) remove(c *call) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		w.slots[c.tick%wheelSlots] = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	w.count--
}

// advance moves the wheel to the tick and appends the calls that are overdue by then, which it takes out.
func (w *wheel) advance(tick uint64, overdue []*call) []*call {
	if tick <= w.tick {
		return overdue
	}
	if w.count > 0 {
		for i := range min(tick-w.tick, wheelSlots) {
			for c := w.slots[(w.tick+1+i)%wheelSlots]; c != nil; {
				next := c.next
				if c.tick <= tick {
					w.remove(c)
					overdue = append(overdue, c)
				}
				c = next
			}
		}
	}
	w.tick = tick
	return overdue
}
