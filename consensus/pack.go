package consensus

import "hash/maphash"

// packer turns the queue of a group into the entries that it proposes in one iteration. Commands are packed so that one
// entry, one append message and one sync carry many; two commands with the same key never share an entry, because they
// would share a revision, and because commands of one entry do not see one another's writes.
type packer struct {
	commandsMax, bytesMax, entriesMax int
	// scanMax bounds how far into the queue one call looks. Behind a key that is written again and again it would
	// otherwise go through the whole queue each time to find little.
	scanMax int

	seed maphash.Seed
	// latest maps the hash of a key to the last entry that holds it, or to entriesMax once a command with that key had
	// to stay behind. Two keys with one hash are taken for the same key, which costs an entry and is otherwise harmless.
	latest map[uint64]int
	bytes  []int
}

func newPacker(cfg Config) packer {
	return packer{
		commandsMax: cfg.EntryCommandsMax, bytesMax: cfg.EntryBytesMax, entriesMax: cfg.EntriesPerIterationMax,
		scanMax: 2 * cfg.EntryCommandsMax * cfg.EntriesPerIterationMax,
		seed:    maphash.MakeSeed(), latest: make(map[uint64]int),
	}
}

// pack assigns the commands of the queue to entries and returns the entries and what is left of the queue, which reuses
// its memory. Commands with the same key keep their order. A command without a key gets an entry of its own: all
// before it is in earlier entries, all after it in later ones.
func (p *packer) pack(queue []*op) (entries [][]*op, rest []*op) {
	clear(p.latest)
	p.bytes = p.bytes[:0]
	rest = queue[:0]
	open := 0 // commands may not join an entry before this one
	for i, o := range queue {
		if i >= p.scanMax || open >= p.entriesMax {
			rest = append(rest, queue[i:]...)
			break
		}
		at := open
		var hash uint64
		if o.key == nil {
			at = len(entries)
		} else {
			hash = maphash.Bytes(p.seed, o.key)
			if last, seen := p.latest[hash]; seen {
				at = max(at, last+1)
			}
			for _, key := range o.more {
				if last, seen := p.latest[maphash.Bytes(p.seed, key)]; seen {
					at = max(at, last+1)
				}
			}
			at = p.room(entries, at, len(o.command)+commandOverhead)
		}
		if at >= p.entriesMax {
			rest = append(rest, o)
			if o.key == nil {
				open = p.entriesMax
			} else {
				p.latest[hash] = p.entriesMax
				p.occupy(o.more, p.entriesMax)
			}
			continue
		}
		if at == len(entries) {
			entries = append(entries, nil)
			p.bytes = append(p.bytes, 0)
		}
		entries[at] = append(entries[at], o)
		p.bytes[at] += len(o.command) + commandOverhead
		if o.key == nil {
			open = at + 1
		} else {
			p.latest[hash] = at
			p.occupy(o.more, at)
		}
	}
	clear(queue[len(rest):])
	return entries, rest
}

// occupy notes that the entry holds a command with these keys.
func (p *packer) occupy(keys [][]byte, entry int) {
	for _, key := range keys {
		p.latest[maphash.Bytes(p.seed, key)] = entry
	}
}

// room returns the first entry from at on that a command of the size fits into. An entry without commands takes any.
func (p *packer) room(entries [][]*op, at, size int) int {
	for at < len(entries) && (len(entries[at]) >= p.commandsMax || p.bytes[at]+size > p.bytesMax) {
		at++
	}
	return at
}
