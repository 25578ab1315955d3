package causal

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/caprockdb/caprock/pkg/kv"
)

// ErrBadSession is returned for bytes that are no session's token.
var ErrBadSession = errors.New("causal: this is no session token of this version, or it was damaged")

// Limits of a session's token, which keep it below SessionBytesMax.
const (
	// SessionKeysMax is how many keys a session knows by themselves; older ones sink into their partitions' floors.
	SessionKeysMax = 24
	// SessionDotsMax is how many versions of one key it knows.
	SessionDotsMax = 4
	// SessionFloorsMax is how many partitions have a floor of their own; others sink into Rest.
	SessionFloorsMax = 128
	// SessionBytesMax bounds what is read as a token.
	SessionBytesMax = 8 << 10

	sessionFormat = 1
)

// SessionDot is a version of the eventual lane: its dot, and the log position that its stamp is based on.
type SessionDot struct {
	Dot  Dot
	Base Position
}

// Stamp is the version's stamp.
func (d SessionDot) Stamp() Stamp { return Stamp{Base: d.Base, Time: d.Dot.Time, Node: d.Dot.Node} }

// SessionKey is what a session has seen of a key: the strong lane's state as of a log index, and versions of the eventual lane.
type SessionKey struct {
	Partition kv.PartitionID
	Hash      uint64
	Index     uint64
	Dots      []SessionDot
	// Held says that a majority of the partition's replicas held all of it, or what replaced it, when it was seen.
	Held bool
}

// SessionFloor stands for keys of a partition that the session no longer knows by themselves. All of it was Held.
type SessionFloor struct {
	Partition kv.PartitionID
	Index     uint64
	Time      HLC
}

// Session is what a session has seen and written. Its methods return changed copies.
//
// Invariant: Keys are in the order in which they were used, the latest last; Floors are sorted by partition.
type Session struct {
	// Time is at or above every stamp that the session has seen.
	Time   HLC
	Keys   []SessionKey
	Floors []SessionFloor
	// Rest is the floor's time of all partitions that have none, once there were too many; 0 before.
	Rest HLC
}

// KeyHash is how a session knows a key.
func KeyHash(key []byte) uint64 { return fnv1a(key) }

// Key returns what the session has seen of the key.
func (s *Session) Key(p kv.PartitionID, hash uint64) (SessionKey, bool) {
	for i := range s.Keys {
		if k := &s.Keys[i]; k.Hash == hash && k.Partition == p {
			return *k, true
		}
	}
	return SessionKey{}, false
}

// Floor returns the floor of the partition. all says that even the index is not known: it is whatever was committed.
func (s *Session) Floor(p kv.PartitionID) (floor SessionFloor, all bool) {
	i, ok := slices.BinarySearchFunc(s.Floors, p, func(f SessionFloor, p kv.PartitionID) int { return int(f.Partition) - int(p) })
	if ok {
		return s.Floors[i], false
	}
	return SessionFloor{Partition: p, Time: s.Rest}, s.Rest != 0
}

// Full reports whether the session has no room for another key that is not held: nothing it knows may be forgotten.
func (s *Session) Full(p kv.PartitionID, hash uint64) bool {
	held := func(k SessionKey) bool { return k.Held || k.Hash == hash && k.Partition == p }
	return len(s.Keys) >= SessionKeysMax && !slices.ContainsFunc(s.Keys, held)
}

// With returns the session after it has seen this of a key, in the place of what it had seen of it. What there is no room for
// sinks into floors, which is sound for what is held only: see Full.
func (s *Session) With(k SessionKey) *Session {
	out := &Session{Time: s.Time, Rest: s.Rest, Floors: slices.Clone(s.Floors)}
	for _, other := range s.Keys {
		if other.Hash != k.Hash || other.Partition != k.Partition {
			out.Keys = append(out.Keys, other)
		}
	}
	for _, d := range k.Dots {
		out.Time = max(out.Time, d.Dot.Time)
	}
	if len(k.Dots) > SessionDotsMax {
		out.sink(k)
		return out
	}
	if k.Index == 0 && len(k.Dots) == 0 {
		return out // there is nothing to miss
	}
	out.Keys = append(out.Keys, k)
	for len(out.Keys) > SessionKeysMax {
		i := max(slices.IndexFunc(out.Keys, func(k SessionKey) bool { return k.Held }), 0)
		out.sink(out.Keys[i])
		out.Keys = slices.Delete(out.Keys, i, i+1)
	}
	return out
}

// sink raises the floor of the key's partition.
func (s *Session) sink(k SessionKey) {
	i, ok := slices.BinarySearchFunc(s.Floors, k.Partition, func(f SessionFloor, p kv.PartitionID) int { return int(f.Partition) - int(p) })
	if !ok {
		// What had sunk into Rest stays true of the partition, whose index then is not known.
		if s.Rest != 0 {
			for _, d := range k.Dots {
				s.Rest = max(s.Rest, d.Dot.Time)
			}
			return
		}
		if len(s.Floors) == SessionFloorsMax {
			s.sinkFloors(k)
			return
		}
		s.Floors = slices.Insert(s.Floors, i, SessionFloor{Partition: k.Partition})
	}
	s.Floors[i].Index = max(s.Floors[i].Index, k.Index)
	for _, d := range k.Dots {
		s.Floors[i].Time = max(s.Floors[i].Time, d.Dot.Time)
	}
}

// sinkFloors gives up the floors for one that holds everywhere.
func (s *Session) sinkFloors(k SessionKey) {
	s.Rest = max(s.Time, 1)
	for _, d := range k.Dots {
		s.Rest = max(s.Rest, d.Dot.Time)
	}
	for _, f := range s.Floors {
		s.Rest = max(s.Rest, f.Time)
	}
	s.Floors = nil
}

// Encode returns the token: a format, what the session knows, and a checksum. It holds hashes of keys, no keys and no values.
func (s *Session) Encode() []byte {
	out := AppendHLC([]byte{sessionFormat}, s.Time)
	out = AppendHLC(out, s.Rest)
	out = append(out, byte(len(s.Keys)))
	for i := range s.Keys {
		k := &s.Keys[i]
		out = binary.AppendUvarint(out, uint64(k.Partition))
		out = binary.BigEndian.AppendUint64(out, k.Hash)
		out = binary.AppendUvarint(out, k.Index)
		flags := byte(len(k.Dots)) << 1
		if k.Held {
			flags |= 1
		}
		out = append(out, flags)
		for _, d := range k.Dots {
			out = AppendPosition(AppendDot(out, d.Dot), d.Base)
		}
	}
	out = append(out, byte(len(s.Floors)))
	for _, f := range s.Floors {
		out = binary.AppendUvarint(out, uint64(f.Partition))
		out = AppendHLC(binary.AppendUvarint(out, f.Index), f.Time)
	}
	return binary.BigEndian.AppendUint32(out, tokenChecksum(out))
}

// DecodeSession reads a token; no bytes, or kv.SessionNew, are a session that begins. The checks catch mistakes, not malice: whoever uses the
// session shows its Time to Clock.Observe first.
func DecodeSession(b []byte) (*Session, error) {
	if len(b) == 0 || string(b) == kv.SessionNew {
		return &Session{}, nil
	}
	if len(b) > SessionBytesMax || len(b) < 2*hlcBytes+7 || b[0] != sessionFormat {
		return nil, ErrBadSession
	}
	body, sum := b[:len(b)-tokenChecksumBytes], b[len(b)-tokenChecksumBytes:]
	if binary.BigEndian.Uint32(sum) != tokenChecksum(body) {
		return nil, ErrBadSession
	}
	r := sessionReader{rest: body[1:]}
	s := &Session{Time: r.hlc(), Rest: r.hlc()}
	for range r.byte() {
		k := SessionKey{Partition: r.partition(), Hash: uint64(r.hlc()), Index: r.uvarint()}
		flags := r.byte()
		k.Held = flags&1 != 0
		for range flags >> 1 {
			k.Dots = append(k.Dots, SessionDot{Dot: r.dot(), Base: r.position()})
		}
		if r.bad {
			return nil, ErrBadSession
		}
		s.Keys = append(s.Keys, k)
	}
	for range r.byte() {
		s.Floors = append(s.Floors, SessionFloor{Partition: r.partition(), Index: r.uvarint(), Time: r.hlc()})
	}
	sorted := slices.IsSortedFunc(s.Floors, func(a, b SessionFloor) int { return int(a.Partition) - int(b.Partition) })
	if r.bad || len(r.rest) > 0 || !sorted || len(s.Keys) > SessionKeysMax || len(s.Floors) > SessionFloorsMax {
		return nil, ErrBadSession
	}
	return s, nil
}

// sessionReader reads fields; the first bad one makes all that follow bad.
type sessionReader struct {
	rest []byte
	bad  bool
}

func sessionField[T any](r *sessionReader, decode func([]byte) (T, []byte, error)) (v T) {
	if r.bad {
		return v
	}
	out, rest, err := decode(r.rest)
	if err != nil {
		r.bad = true
		return v
	}
	r.rest = rest
	return out
}

func (r *sessionReader) hlc() HLC           { return sessionField(r, DecodeHLC) }
func (r *sessionReader) dot() Dot           { return sessionField(r, DecodeDot) }
func (r *sessionReader) position() Position { return sessionField(r, DecodePosition) }
func (r *sessionReader) uvarint() uint64    { return sessionField(r, decodeUvarint) }

func (r *sessionReader) partition() kv.PartitionID {
	v := r.uvarint()
	if v > 1<<16-1 {
		r.bad = true
	}
	return kv.PartitionID(v)
}

func (r *sessionReader) byte() byte {
	return sessionField(r, func(b []byte) (byte, []byte, error) {
		if len(b) == 0 {
			return 0, nil, ErrBadSession
		}
		return b[0], b[1:], nil
	})
}
