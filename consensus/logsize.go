package consensus

// logSize keeps count of how large a group's log is, and where in it a given number of bytes from its end lies. It
// remembers the running sum at marks that are a grain apart, not of every entry, so that its answers are off by up to a
// grain and an entry; what it decides, how much of a log to keep, needs no more.
type logSize struct {
	grain uint64
	// first is the running sum in front of the log's first entry, end that behind its last.
	first, end uint64
	marks      []sizeMark // rising in both fields
}

// sizeMark says that the running sum behind the entry at index is end.
type sizeMark struct{ index, end uint64 }

// add counts an entry that follows the last one.
func (s *logSize) add(index, bytes uint64) {
	s.end += bytes
	last := s.first
	if n := len(s.marks); n > 0 {
		last = s.marks[n-1].end
	}
	if s.end-last >= s.grain {
		s.marks = append(s.marks, sizeMark{index: index, end: s.end})
	}
}

// cutSuffix forgets the entries from index on. Those between the last mark in front of it and index are forgotten too.
func (s *logSize) cutSuffix(index uint64) {
	n := len(s.marks)
	for n > 0 && s.marks[n-1].index >= index {
		n--
	}
	s.marks, s.end = s.marks[:n], s.first
	if n > 0 {
		s.end = s.marks[n-1].end
	}
}

// cutPrefix forgets the entries up to index. Those between the last mark up to it and index are still counted.
func (s *logSize) cutPrefix(index uint64) {
	n := 0
	for n < len(s.marks) && s.marks[n].index <= index {
		s.first = s.marks[n].end
		n++
	}
	s.marks = append(s.marks[:0], s.marks[n:]...)
}

// clear forgets everything.
func (s *logSize) clear() { s.marks, s.first = s.marks[:0], s.end }

// bytes returns the size of the log.
func (s *logSize) bytes() uint64 { return s.end - s.first }

// before returns the highest index known to have at least tail bytes behind it, 0 when there is none.
func (s *logSize) before(tail uint64) uint64 {
	// From the front: what is cut is most of the marks.
	index := uint64(0)
	for _, m := range s.marks {
		if s.end-m.end < tail {
			break
		}
		index = m.index
	}
	return index
}
