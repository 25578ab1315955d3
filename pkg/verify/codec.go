package verify

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// historyFormat is the first line's "history": it changes when a line's meaning does.
const historyFormat = 1

// lineBytesMax bounds a line of an encoded history.
const lineBytesMax = 64 << 20

// ErrMalformed is returned for a file that Encode did not write.
var ErrMalformed = errors.New("verify: malformed history")

// line is one line of an encoded history: the header, an operation or a note.
type line struct {
	History int     `json:"history,omitempty"`
	Note    *string `json:"note,omitempty"`
	Time    int64   `json:"time,omitempty"` // of a note
	Op      *opLine `json:"op,omitempty"`
}

// opLine is an Op with names in the place of numbers.
type opLine struct {
	ID           int           `json:"id"`
	Client       int           `json:"client"`
	Kind         string        `json:"kind"`
	Level        string        `json:"level,omitempty"`
	Quorum       *kv.Quorum    `json:"quorum,omitempty"`
	Key          string        `json:"key"`
	Value        string        `json:"value,omitempty"`
	Condition    *kv.Condition `json:"condition,omitempty"`
	TTL          time.Duration `json:"ttl_ns,omitempty"`
	MaxStaleness time.Duration `json:"max_staleness_ns,omitempty"`
	Staleness    time.Duration `json:"staleness_ns,omitempty"`
	Items        []itemLine    `json:"items,omitempty"`
	Covers       []string      `json:"covers,omitempty"`
	MayCover     []string      `json:"may_cover,omitempty"`
	Final        bool          `json:"final,omitempty"`
	Call         int64         `json:"call"`
	Return       int64         `json:"return,omitempty"` // left out for Never
	At           time.Duration `json:"at_ns,omitempty"`
	Until        time.Duration `json:"until_ns,omitempty"`
	Outcome      string        `json:"outcome"`
	Found        bool          `json:"found,omitempty"`
	Missed       bool          `json:"missed,omitempty"`
	Version      uint64        `json:"version,omitempty"`
	Result       string        `json:"result,omitempty"`
	Siblings     []Seen        `json:"siblings,omitempty"`
	Listed       []Row         `json:"listed,omitempty"`
	Code         kv.Code       `json:"code,omitempty"`
	Detail       string        `json:"detail,omitempty"`
}

// itemLine is an Item with a name in the place of a number.
type itemLine struct {
	Kind      string        `json:"kind"`
	Key       string        `json:"key"`
	Value     string        `json:"value,omitempty"`
	Condition *kv.Condition `json:"condition,omitempty"`
	TTL       time.Duration `json:"ttl_ns,omitempty"`
	Found     bool          `json:"found,omitempty"`
}

// Encode writes the history as JSON lines: a header, then operations in the order of their calls and notes.
func (h *History) Encode(w io.Writer) error {
	buffered := bufio.NewWriter(w)
	enc := json.NewEncoder(buffered)
	lines := []line{{History: historyFormat}}
	notes := h.Notes()
	for _, op := range h.Ops() {
		for len(notes) > 0 && notes[0].Time < op.Call {
			lines = append(lines, line{Note: &notes[0].Text, Time: notes[0].Time})
			notes = notes[1:]
		}
		lines = append(lines, line{Op: encodeOp(&op)})
	}
	for i := range notes {
		lines = append(lines, line{Note: &notes[i].Text, Time: notes[i].Time})
	}
	for i := range lines {
		if err := enc.Encode(&lines[i]); err != nil {
			return err
		}
	}
	return buffered.Flush()
}

func encodeOp(op *Op) *opLine {
	out := &opLine{
		ID: op.ID, Client: op.Client, Kind: op.Kind.String(), Level: op.Level.String(), Key: op.Key, Value: op.Value,
		Covers: op.Covers, MayCover: op.MayCover, Final: op.Final, Call: op.Call, Return: op.Return,
		Outcome: op.Outcome.String(), Found: op.Found, Missed: op.Missed, Version: op.Version, Result: op.Result,
		Siblings: op.Siblings, Code: op.Code, Detail: text([]byte(op.Detail)),
		MaxStaleness: op.MaxStaleness, Staleness: op.Staleness,
		TTL: op.TTL, At: op.At, Until: op.Until, Listed: op.Listed,
	}
	for i := range op.Items {
		it := &op.Items[i]
		l := itemLine{Kind: it.Kind.String(), Key: it.Key, Value: it.Value, TTL: it.TTL, Found: it.Found}
		if it.Condition != (kv.Condition{}) {
			l.Condition = &it.Condition
		}
		out.Items = append(out.Items, l)
	}
	if op.Return == Never {
		out.Return = 0
	}
	if op.Quorum != (kv.Quorum{}) {
		out.Quorum = &op.Quorum
	}
	if op.Condition != (kv.Condition{}) {
		out.Condition = &op.Condition
	}
	return out
}

// Decode reads what Encode wrote.
func Decode(r io.Reader) (*History, error) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, lineBytesMax)
	h := NewHistory()
	n := 0
	for scanner.Scan() {
		n++
		var l line
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrMalformed, n, err)
		}
		if err := h.decodeLine(n, &l); err != nil {
			return nil, err
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("verify: cannot read the history: %w", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	return h, nil
}

func (h *History) decodeLine(n int, l *line) error {
	switch {
	case n == 1 && l.History != historyFormat:
		return fmt.Errorf("%w: the first line says format %d; this program knows format %d", ErrMalformed, l.History, historyFormat)
	case n == 1:
	case l.Note != nil:
		h.notes = append(h.notes, Note{Time: l.Time, Text: *l.Note})
		h.advance(l.Time)
	case l.Op != nil:
		op, err := decodeOp(l.Op)
		if err != nil || op.ID != len(h.ops) {
			return fmt.Errorf("%w: line %d is no operation, or one that is out of order", ErrMalformed, n)
		}
		h.ops = append(h.ops, op)
		h.advance(op.Call)
		if op.Return != Never {
			h.advance(op.Return)
		}
	default:
		return fmt.Errorf("%w: line %d holds nothing", ErrMalformed, n)
	}
	return nil
}

// advance sets the clock so that it is past t.
func (h *History) advance(t int64) { h.clock.Store(max(h.clock.Load(), t)) }

func decodeOp(l *opLine) (Op, error) {
	op := Op{
		ID: l.ID, Client: l.Client, Key: l.Key, Value: l.Value, Covers: l.Covers, MayCover: l.MayCover, Final: l.Final,
		Call: l.Call, Return: l.Return, Found: l.Found, Missed: l.Missed, Version: l.Version, Result: l.Result,
		Siblings: l.Siblings, Code: l.Code, Detail: l.Detail,
		MaxStaleness: l.MaxStaleness, Staleness: l.Staleness,
		TTL: l.TTL, At: l.At, Until: l.Until, Listed: l.Listed,
	}
	for i := range l.Items {
		item, err := decodeItem(&l.Items[i])
		if err != nil {
			return op, err
		}
		op.Items = append(op.Items, item)
	}
	if op.Return == 0 {
		op.Return = Never
	}
	if l.Quorum != nil {
		op.Quorum = *l.Quorum
	}
	if l.Condition != nil {
		op.Condition = *l.Condition
	}
	var ok bool
	if op.Kind, ok = named(l.Kind, kv.OpGet, kv.OpList); !ok {
		return op, ErrMalformed
	}
	if op.Level, ok = named(l.Level, kv.LevelUnset, kv.LevelLast); !ok {
		return op, ErrMalformed
	}
	if op.Outcome, ok = named(l.Outcome, OutcomePending, OutcomeUnknown); !ok {
		return op, ErrMalformed
	}
	return op, nil
}

func decodeItem(l *itemLine) (Item, error) {
	out := Item{Key: l.Key, Value: l.Value, TTL: l.TTL, Found: l.Found}
	if l.Condition != nil {
		out.Condition = *l.Condition
	}
	var ok bool
	if out.Kind, ok = named(l.Kind, kv.OpPut, kv.OpDelete); !ok {
		return out, ErrMalformed
	}
	return out, nil
}

// named finds the value from first to last with the name.
func named[T interface {
	~uint8
	String() string
}](name string, first, last T) (T, bool) {
	for v := first; v <= last; v++ {
		if v.String() == name {
			return v, true
		}
	}
	return 0, false
}
