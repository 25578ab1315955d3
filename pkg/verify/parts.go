package verify

import (
	"fmt"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Item is one write of an atomic batch.
type Item struct {
	Kind       kv.Op
	Key, Value string
	Condition  kv.Condition
	TTL        time.Duration
	Found      bool // of a delete that was answered
}

// Row is a key that a listing was answered, with what it holds.
type Row struct {
	Key     string `json:"key"`
	Value   string `json:"value,omitempty"`
	Version uint64 `json:"version,omitempty"`
}

// parts returns the operation as one operation a key: the writes of a batch, what a listing shows, or the operation itself.
// They keep its id. Where a batch missed, which condition did is not known, and no part says that one did not.
func (o *Op) parts() []Op {
	switch o.Kind {
	case kv.OpBatch:
		out := make([]Op, len(o.Items))
		for i := range o.Items {
			if out[i] = o.item(i); o.Missed {
				out[i].Condition = kv.Condition{}
			}
		}
		return out
	case kv.OpList:
		out := make([]Op, len(o.Listed))
		for i, row := range o.Listed {
			part := *o
			part.Kind, part.Key, part.Listed = kv.OpGet, row.Key, nil
			part.Found, part.Result, part.Version = true, row.Value, row.Version
			out[i] = part
		}
		return out
	default:
		return []Op{*o}
	}
}

// item returns write i of a batch as an operation of its own.
func (o *Op) item(i int) Op {
	it := &o.Items[i]
	part := *o
	part.Kind, part.Key, part.Value, part.Condition, part.TTL, part.Items = it.Kind, it.Key, it.Value, it.Condition, it.TTL, nil
	part.Found = it.Found
	return part
}

// partsOf returns the parts of all operations.
func partsOf(ops []Op) []Op {
	out := make([]Op, 0, len(ops))
	for i := range ops {
		out = append(out, ops[i].parts()...)
	}
	return out
}

// Keys returns the keys that the operation names or was answered.
func (o *Op) Keys() []string {
	var out []string
	for _, part := range o.parts() {
		out = append(out, part.Key)
	}
	return out
}

// TagOf returns what of a key comes before the end of its {tag}, the tag included: keys that share it are written by one
// batch. Of a key without a tag it is the key.
func TagOf(key string) string {
	if tag, _, ok := strings.Cut(key, "}"); ok {
		return tag + "}"
	}
	return key
}

func conditionText(c kv.Condition) string {
	switch c.Kind {
	case kv.ConditionVersion:
		return fmt.Sprintf(" if version %d", c.Version)
	case kv.ConditionExists:
		return " if it exists"
	default:
		return ""
	}
}

func ttlText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return " for " + d.String()
}

func itemsText(items []Item) string {
	parts := make([]string, len(items))
	for i := range items {
		it := &items[i]
		parts[i] = it.Kind.String() + " " + it.Key
		if it.Kind == kv.OpPut {
			parts[i] += fmt.Sprintf(" %q%s", it.Value, ttlText(it.TTL))
		}
		parts[i] += conditionText(it.Condition)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func rowsText(rows []Row) string {
	parts := make([]string, len(rows))
	for i, row := range rows {
		parts[i] = fmt.Sprintf("%s %q%s", row.Key, row.Value, versionText(row.Version))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
