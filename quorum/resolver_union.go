package quorum

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Union is the resolver by which a key holds the elements of all JSON arrays written to it, until it is deleted. Elements are
// the same if they are the same JSON without white space; what a string escapes does not matter. The value is the array of
// the elements in the order of their bytes. A value that is no array, written under another policy, counts as the array of
// itself as a string.
type Union struct {
	// ValueBytesMax bounds what Fold makes; 0: nothing does.
	ValueBytesMax int
}

// Name returns "union".
func (Union) Name() string { return kv.ResolverUnion }

// Resolve returns the union.
func (Union) Resolve(versions []causal.Sibling) causal.Sibling {
	return resolveJoin(versions, func(live []causal.Sibling) []byte { return unite(live, nil) })
}

// KeepsSiblings returns true.
func (Union) KeepsSiblings() bool { return true }

// Blind returns BlindFolds.
func (Union) Blind() Blind { return BlindFolds }

// Check refuses what is no JSON array.
func (Union) Check(value []byte, _ bool) error {
	if _, ok := parseArray(value); !ok {
		return kv.Errorf(kv.CodeBadRequest, "under the resolver %s a value is a JSON array, such as [\"a\",\"b\"]", kv.ResolverUnion)
	}
	return nil
}

// Fold returns the union.
func (u Union) Fold(f Fold) ([]byte, error) {
	value := unite(f.Held, f.Value)
	if u.ValueBytesMax > 0 && len(value) > u.ValueBytesMax && len(value) > len(f.Value) {
		return nil, kv.Errorf(kv.CodeValueTooLarge, "with what the key holds the value would have %d bytes; the limit is %d", len(value), u.ValueBytesMax)
	}
	return value, nil
}

// unite returns the union of the versions' elements, and of those of value if there is one.
func unite(versions []causal.Sibling, value []byte) []byte {
	all := map[string]struct{}{}
	if value != nil {
		addElements(all, value)
	}
	for i := range versions {
		addElements(all, plain(versions[i]).Value)
	}
	return []byte("[" + strings.Join(slices.Sorted(maps.Keys(all)), ",") + "]")
}

func addElements(all map[string]struct{}, value []byte) {
	elements, ok := parseArray(value)
	if !ok {
		all[encodeText(string(value))] = struct{}{}
		return
	}
	for _, raw := range elements {
		all[encodeElement(raw)] = struct{}{}
	}
}

func parseArray(value []byte) ([]json.RawMessage, bool) {
	var elements []json.RawMessage
	if err := json.Unmarshal(value, &elements); err != nil || elements == nil {
		return nil, false // null is no array either
	}
	return elements, true
}

// encodeElement returns the one spelling of an element.
func encodeElement(raw json.RawMessage) string {
	var text string
	if raw[0] == '"' && json.Unmarshal(raw, &text) == nil {
		return encodeText(text)
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw) // it was parsed before, so that this cannot be
	}
	return b.String()
}

func encodeText(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	// What is not UTF-8 would be spelt in one way here, and in another when it is read again.
	if e.Encode(strings.ToValidUTF8(s, "\uFFFD")) != nil { // a string can always be encoded
		return `""`
	}
	return strings.TrimSuffix(b.String(), "\n")
}
