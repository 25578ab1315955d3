package verify

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Never is the Return of an operation that may take effect at any later time.
const Never = math.MaxInt64

// Outcome is what the client knew about an operation once it had ended.
type Outcome uint8

// The outcomes.
const (
	// OutcomePending: the client still waits. Checkers take it for unknown.
	OutcomePending Outcome = iota
	// OutcomeOK: the operation was answered.
	OutcomeOK
	// OutcomeFail: nothing was applied and nothing will be.
	OutcomeFail
	// OutcomeUnknown: it may have been applied, or may yet be.
	OutcomeUnknown
)

var outcomeNames = [...]string{"pending", "ok", "fail", "unknown"}

// String returns the outcome as histories spell it.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "invalid"
}

// Seen is one of several concurrent versions that a read was answered.
type Seen struct {
	Value   string `json:"value,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
}

// Op is one operation of a history: what the client asked, when, and what it learned.
type Op struct {
	// ID is the operation's place in the order of calls, from 0.
	ID     int
	Client int

	// What was asked.
	Kind      kv.Op
	Level     kv.Level
	Quorum    kv.Quorum
	Key       string
	Value     string // of a put; unique within the history
	Condition kv.Condition
	// TTL is how long the value of a put is to be there; 0 means for ever.
	TTL time.Duration
	// MaxStaleness is how stale a bounded read may be, Staleness how stale it said that it is at most when it was answered.
	MaxStaleness, Staleness time.Duration
	// Items are the writes of an atomic batch. Key is then that of the first; of a listing it is the prefix.
	Items []Item
	// Covers holds the values of the writes that the context given with a write had certainly read; MayCover those that
	// it may have read. See CheckCausal.
	Covers, MayCover []string
	// Final marks a read made after the run, when everything had healed.
	Final bool

	// When: Call < Return. Return is Never while the outcome of a write is unknown or pending.
	Call, Return int64
	// At and Until are readings of the client's clock at the same two moments, since the history began. They say whether a
	// value may have expired, and nothing about order. Until is that of the answer, whatever it was.
	At, Until time.Duration

	// What was answered.
	Outcome Outcome
	Found   bool   // of a read, and of a strong delete
	Missed  bool   // a condition missed: nothing was written, and Version is what the key had instead, 0 for none
	Version uint64 // of the strong version read or written
	Result  string // what a read found
	// Siblings holds all versions when a read was answered more than one.
	Siblings []Seen
	Listed   []Row   // of a listing
	Code     kv.Code // of the error, or ""
	Detail   string  // of the error
}

// IsWrite reports whether the operation asked to change its key.
func (o *Op) IsWrite() bool { return o.Kind.IsWrite() }

// MayHaveWritten reports whether the operation wrote its key or may have.
func (o *Op) MayHaveWritten() bool { return o.IsWrite() && !o.Missed && o.Outcome != OutcomeFail }

// Wrote reports whether the operation is known to have written its key.
func (o *Op) Wrote() bool { return o.IsWrite() && !o.Missed && o.Outcome == OutcomeOK }

// Answered reports whether the operation is a read of one key that was answered.
func (o *Op) Answered() bool { return o.Kind == kv.OpGet && o.Outcome == OutcomeOK }

// Values returns the live values that a read was answered.
func (o *Op) Values() []string {
	if len(o.Siblings) == 0 {
		if !o.Found {
			return nil
		}
		return []string{o.Result}
	}
	var out []string
	for _, s := range o.Siblings {
		if !s.Deleted {
			out = append(out, s.Value)
		}
	}
	return out
}

// IsRead reports whether the operation changes nothing.
func (o *Op) IsRead() bool { return o.Kind == kv.OpGet || o.Kind == kv.OpList }

// String describes the operation on one line: who, when, what, and with which result.
func (o *Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d client %d [%d,%s] %s", o.ID, o.Client, o.Call, timeText(o.Return), o.describe())
	return b.String()
}

// describe is String without who and when.
func (o *Op) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", o.Level, o.Kind, o.Key)
	if o.Kind == kv.OpPut {
		fmt.Fprintf(&b, " %q%s", o.Value, ttlText(o.TTL))
	}
	b.WriteString(conditionText(o.Condition))
	if o.Kind == kv.OpBatch {
		b.WriteString(" " + itemsText(o.Items))
	}
	if len(o.Covers) > 0 {
		fmt.Fprintf(&b, " having read %q", o.Covers)
	}
	b.WriteString(" -> ")
	b.WriteString(o.answer())
	return b.String()
}

// answer describes what the client learned.
func (o *Op) answer() string {
	switch {
	case o.Outcome != OutcomeOK:
		if o.Code != "" {
			return o.Outcome.String() + " (" + string(o.Code) + ")"
		}
		return o.Outcome.String()
	case o.Missed:
		return fmt.Sprintf("missed: version %d", o.Version)
	case o.Kind == kv.OpList:
		return rowsText(o.Listed)
	case o.Kind == kv.OpGet && len(o.Siblings) > 0:
		return "siblings " + siblingsText(o.Siblings)
	case o.Kind == kv.OpGet && !o.Found:
		return "not found"
	case o.Kind == kv.OpGet:
		return strconv.Quote(o.Result) + versionText(o.Version)
	case o.Kind == kv.OpDelete && o.Level == kv.LevelStrong:
		return fmt.Sprintf("ok, found %t%s", o.Found, versionText(o.Version))
	default:
		return "ok" + versionText(o.Version)
	}
}

func versionText(v uint64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(" version %d", v)
}

func timeText(t int64) string {
	if t == Never {
		return "never"
	}
	return strconv.FormatInt(t, 10)
}

func siblingsText(siblings []Seen) string {
	parts := make([]string, len(siblings))
	for i, s := range siblings {
		if parts[i] = strconv.Quote(s.Value); s.Deleted {
			parts[i] = "(deleted)"
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
