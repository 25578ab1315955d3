package transport

// windowIDs is how far a request may be behind the newest one of its sender and still be taken. It bounds the memory for
// telling repeated requests from late ones: 8 KiB a peer.
const windowIDs = 1 << 16

// window tells which requests of a peer were taken before, so that a request that the network repeats is handled once.
// Ids of one life of the sender grow by one; the window remembers the last windowIDs of them. What is older is refused:
// its sender gave it up long ago, so that refusing it is a lost message, nothing worse.
type window struct {
	// life is the sender's life that the rest is about; previous is the one before it, whose stragglers are refused.
	life, previous uint64
	started        bool
	newest         uint64
	// seen has bit id%windowIDs set for each id in (newest−windowIDs, newest] that was taken.
	seen [windowIDs / 64]uint64
}

// take reports whether the request is to be handled, and notes that it was.
func (w *window) take(life, id uint64) bool {
	if !w.started || life != w.life {
		if w.started && life == w.previous {
			return false
		}
		w.previous, w.life, w.started, w.newest = w.life, life, true, id
		clear(w.seen[:])
		w.set(id)
		return true
	}
	if id > w.newest {
		// The places of the ids between are taken over from ids that have left the window.
		if id-w.newest >= windowIDs {
			clear(w.seen[:])
		} else {
			for i := w.newest + 1; i < id; i++ {
				w.seen[i%windowIDs/64] &^= 1 << (i % 64)
			}
		}
		w.newest = id
		w.set(id)
		return true
	}
	if w.newest-id >= windowIDs || w.seen[id%windowIDs/64]&(1<<(id%64)) != 0 {
		return false
	}
	w.set(id)
	return true
}

func (w *window) set(id uint64) { w.seen[id%windowIDs/64] |= 1 << (id % 64) }
