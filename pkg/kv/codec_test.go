package kv

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// drawBytes draws nil instead of an empty slice, which is how a decoder spells it.
func drawBytes(t *rapid.T, name string) []byte {
	b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, name)
	if len(b) == 0 {
		return nil
	}
	return b
}

func drawTime(t *rapid.T, name string) time.Time {
	if rapid.Bool().Draw(t, name+".zero") {
		return time.Time{}
	}
	return time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+".ns")).UTC()
}

func drawRequest(t *rapid.T) Request {
	r := Request{
		Op:       Op(rapid.IntRange(0, int(OpDelete)).Draw(t, "op")),
		Level:    Level(rapid.IntRange(0, int(LevelLast)).Draw(t, "level")),
		Quorum:   Quorum{N: rapid.Int().Draw(t, "n"), R: rapid.Int().Draw(t, "r"), W: rapid.Int().Draw(t, "w")},
		Siblings: SiblingMode(rapid.IntRange(0, int(SiblingsError)).Draw(t, "siblings")),
		Key:      drawBytes(t, "key"),
		Value:    drawBytes(t, "value"),
		Context:  drawBytes(t, "context"),
		Hops:     rapid.Byte().Draw(t, "hops"),
	}
	if rapid.Bool().Draw(t, "id") {
		r.ID = OpID{
			Session:  rapid.SliceOfN(rapid.Byte(), 1, 255).Draw(t, "session"),
			Sequence: rapid.Uint64().Draw(t, "sequence"), Floor: rapid.Uint64().Draw(t, "floor"),
			Required: rapid.Bool().Draw(t, "required"),
		}
	}
	if rapid.Bool().Draw(t, "expires") {
		r.TTL = time.Duration(rapid.Int64().Draw(t, "ttl"))
	}
	if rapid.Bool().Draw(t, "lists") {
		r.List = &ListQuery{
			Prefix: drawBytes(t, "prefix"), After: drawBytes(t, "after"), Limit: rapid.Int().Draw(t, "limit"),
			KeysOnly: rapid.Bool().Draw(t, "keys only"), Single: rapid.Bool().Draw(t, "single"), Partition: PartitionID(rapid.Uint16().Draw(t, "partition")),
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "items") {
		item := BatchItem{TTL: time.Duration(rapid.Int64Range(0, 5).Draw(t, "item ttl")), Op: Op(rapid.IntRange(0, int(OpDelete)).Draw(t, "item")), Key: drawBytes(t, "item key"), Value: drawBytes(t, "item value")}
		if kind := rapid.IntRange(0, int(ConditionExists)).Draw(t, "item condition"); kind != 0 {
			item.Condition = Condition{Kind: ConditionKind(kind), Version: rapid.Uint64().Draw(t, "item version")}
		}
		r.Items = append(r.Items, item)
	}
	if kind := rapid.IntRange(0, int(ConditionExists)).Draw(t, "condition"); kind != 0 {
		r.Condition = Condition{Kind: ConditionKind(kind), Version: rapid.Uint64().Draw(t, "version")}
	}
	if r.Level == LevelBounded {
		r.MaxStaleness = time.Duration(rapid.Int64().Draw(t, "max staleness"))
	}
	return r
}

func drawResponse(t *rapid.T) Response {
	r := Response{
		Found:       rapid.Bool().Draw(t, "found"),
		Settled:     rapid.Bool().Draw(t, "settled"),
		Level:       Level(rapid.IntRange(0, int(LevelLast)).Draw(t, "level")),
		Outcome:     Outcome(rapid.IntRange(0, int(OutcomeUnknown)).Draw(t, "outcome")),
		Acks:        rapid.Int().Draw(t, "acks"),
		Version:     rapid.Uint64().Draw(t, "version"),
		Value:       drawBytes(t, "value"),
		Context:     drawBytes(t, "context"),
		Timestamp:   drawTime(t, "timestamp"),
		Expires:     drawTime(t, "expires"),
		Concurrent:  rapid.Int().Draw(t, "concurrent"),
		Coordinator: NodeID(rapid.Uint64().Draw(t, "coordinator")),
	}
	if r.Level == LevelBounded {
		r.Staleness = time.Duration(rapid.Int64().Draw(t, "staleness"))
	}
	for range rapid.IntRange(0, 4).Draw(t, "replicas") {
		r.Replicas = append(r.Replicas, NodeID(rapid.Uint64().Draw(t, "replica")))
	}
	r.More = rapid.Bool().Draw(t, "more")
	for range rapid.IntRange(0, 3).Draw(t, "listed") {
		r.Listed = append(r.Listed, ListItem{
			Key: drawBytes(t, "listed key"), Value: drawBytes(t, "listed value"), Version: rapid.Uint64().Draw(t, "listed version"),
			Timestamp: drawTime(t, "listed time"),
		})
	}
	for range rapid.IntRange(0, 3).Draw(t, "items") {
		r.Items = append(r.Items, ItemResult{Found: rapid.Bool().Draw(t, "item found")})
	}
	for range rapid.IntRange(0, 4).Draw(t, "siblings") {
		r.Siblings = append(r.Siblings, Sibling{
			Value: drawBytes(t, "sibling"), Deleted: rapid.Bool().Draw(t, "deleted"),
			Timestamp: drawTime(t, "sibling time"), Node: NodeID(rapid.Uint64().Draw(t, "node")),
		})
	}
	return r
}

func drawError(t *rapid.T) *Error {
	return &Error{
		Code:           Code(rapid.String().Draw(t, "code")),
		Detail:         rapid.String().Draw(t, "detail"),
		Outcome:        Outcome(rapid.IntRange(0, int(OutcomeUnknown)).Draw(t, "outcome")),
		Retryable:      rapid.Bool().Draw(t, "retryable"),
		Required:       rapid.Int().Draw(t, "required"),
		Alive:          rapid.Int().Draw(t, "alive"),
		Acked:          rapid.Int().Draw(t, "acked"),
		CurrentVersion: rapid.Uint64().Draw(t, "version"),
		Leader:         rapid.String().Draw(t, "leader"),
		RetryAfter:     time.Duration(rapid.Int64().Draw(t, "retry after")),
		Staleness:      time.Duration(rapid.Int64().Draw(t, "staleness")),
	}
}

func TestMessagesSurviveTheirCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		got, err := DecodeRequest(AppendRequest([]byte("x"), &r)[1:])
		require.NoError(t, err)
		require.Equal(t, r, got)
	})
	rapid.Check(t, func(t *rapid.T) {
		r := drawResponse(t)
		got, err := DecodeResponse(AppendResponse([]byte("x"), &r)[1:])
		require.NoError(t, err)
		require.Equal(t, r, got)
	})
	rapid.Check(t, func(t *rapid.T) {
		e := drawError(t)
		got, err := DecodeError(AppendError([]byte("x"), e)[1:])
		require.NoError(t, err)
		require.Equal(t, e, got)
	})
}

func TestDecodedValuesAliasTheMessage(t *testing.T) {
	b := AppendRequest(nil, &Request{Op: OpPut, Key: []byte("key"), Value: []byte("value")})
	r, err := DecodeRequest(b)
	require.NoError(t, err)
	b[bytes.Index(b, []byte("value"))] = 'V'
	require.Equal(t, "Value", string(r.Value))
	// Appending to one field never writes into the next.
	r.Key = append(r.Key, "!!!!"...)
	require.Equal(t, "Value", string(r.Value))
}

func TestDecodersRefuseTruncatedAndOverlongMessages(t *testing.T) {
	request := AppendRequest(nil, &Request{
		Op: OpPut, Key: []byte("key"), Value: []byte("value"), Condition: Condition{ConditionVersion, 300},
	})
	response := AppendResponse(nil, &Response{
		Timestamp: time.Unix(1, 2), Replicas: []NodeID{1, 300}, Siblings: []Sibling{{Value: []byte("v")}},
	})
	failure := AppendError(nil, Errorf(CodeNoLeader, "detail"))
	for name, m := range map[string]struct {
		good   []byte
		decode func([]byte) error
	}{
		"request":  {request, func(b []byte) error { _, err := DecodeRequest(b); return err }},
		"response": {response, func(b []byte) error { _, err := DecodeResponse(b); return err }},
		"error":    {failure, func(b []byte) error { _, err := DecodeError(b); return err }},
	} {
		require.NoError(t, m.decode(m.good), name)
		for i := range m.good {
			require.ErrorIs(t, m.decode(m.good[:i]), ErrMalformed, "%s: the first %d bytes", name, i)
		}
		require.ErrorIs(t, m.decode(append(bytes.Clone(m.good), 0)), ErrMalformed, name)
		for i := range 3 {
			outOfRange := bytes.Clone(m.good)
			outOfRange[i] = 0xee
			require.ErrorIs(t, m.decode(outOfRange), ErrMalformed, "%s: byte %d", name, i)
		}
	}
}

// TestDecodersAllocateNoMoreThanTheMessageJustifies feeds counts that the bytes behind them cannot hold.
func TestDecodersAllocateNoMoreThanTheMessageJustifies(t *testing.T) {
	b := AppendResponse(nil, &Response{})
	huge := append(bytes.Clone(b[:len(b)-2]), 0xff, 0xff, 0xff, 0xff, 0x0f)
	_, err := DecodeResponse(huge)
	require.ErrorIs(t, err, ErrMalformed)
	huge = append(bytes.Clone(b[:len(b)-1]), 0xff, 0xff, 0xff, 0xff, 0x0f)
	_, err = DecodeResponse(huge)
	require.ErrorIs(t, err, ErrMalformed)
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(AppendRequest(nil, &Request{Op: OpPut, Level: LevelStrong, Key: []byte("k"), Value: []byte("v")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		again, err := DecodeRequest(AppendRequest(nil, &r))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add(AppendResponse(nil, &Response{Found: true, Value: []byte("v"), Replicas: []NodeID{1, 2}, Timestamp: time.Unix(9, 9)}))
	f.Add(AppendResponse(nil, &Response{Siblings: []Sibling{{Value: []byte("v"), Timestamp: time.Unix(9, 9)}, {Deleted: true}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeResponse(b)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		again, err := DecodeResponse(AppendResponse(nil, &r))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

func FuzzDecodeError(f *testing.F) {
	f.Add(AppendError(nil, Errorf(CodeVersionMismatch, "the version is %d", 7)))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeError(b)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		again, err := DecodeError(AppendError(nil, e))
		require.NoError(t, err)
		require.Equal(t, e, again)
	})
}

func BenchmarkRequestCodec(b *testing.B) {
	r := Request{Op: OpPut, Level: LevelStrong, Key: []byte("account:balance"), Value: make([]byte, 100)}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendRequest(buf[:0], &r)
		if _, err := DecodeRequest(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponseCodec(b *testing.B) {
	r := Response{
		Found: true, Settled: true, Level: LevelStrong, Acks: 2, Version: 70_000, Value: make([]byte, 100),
		Context: make([]byte, 30), Timestamp: time.Now(), Coordinator: 2, Replicas: []NodeID{1, 2, 3},
	}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendResponse(buf[:0], &r)
		if _, err := DecodeResponse(buf); err != nil {
			b.Fatal(err)
		}
	}
}
