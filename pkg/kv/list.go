package kv

import "time"

// Limits of a listing (design.md §12).
const (
	ListItemsMax     = 1000
	ListItemsDefault = 100
	// ListBytesMax is about how much keys and values of one page, or of one partition's part of it, may take; a single
	// larger item is a page of its own.
	ListBytesMax = 1 << 20
)

// ListQuery asks for the keys with a prefix, in the order of their bytes.
type ListQuery struct {
	Prefix []byte
	// After is the key after which the listing goes on; empty for the beginning.
	After []byte
	// Limit is the most items wanted, 1 to ListItemsMax.
	Limit    int
	KeysOnly bool
	// Single asks one partition only, which is how nodes ask one another.
	Single    bool
	Partition PartitionID
}

// ListItem is a key and what it holds.
type ListItem struct {
	Key, Value []byte
	Version    uint64
	Timestamp  time.Time
	// Siblings holds all concurrent versions when there is more than one and the key's resolver keeps them; then there is
	// no Value.
	Siblings []Sibling
}

// Bytes is what the item takes of ListBytesMax.
func (i *ListItem) Bytes() int {
	size := len(i.Key) + len(i.Value)
	for s := range i.Siblings {
		size += len(i.Siblings[s].Value)
	}
	return size
}

// validateList checks a listing.
func (r *Request) validateList() error {
	switch {
	case r.List == nil:
		return Errorf(CodeBadRequest, "the listing does not say what to list")
	case r.List.Limit < 1 || r.List.Limit > ListItemsMax:
		return Errorf(CodeBadRequest, "limit=%d is out of range: it is 1 to %d", r.List.Limit, ListItemsMax)
	case len(r.List.Prefix) > KeyBytesMax || len(r.List.After) > KeyBytesMax:
		return Errorf(CodeKeyTooLarge, "the prefix has %d bytes; the limit is %d", len(r.List.Prefix), KeyBytesMax)
	}
	return nil
}
