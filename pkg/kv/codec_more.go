package kv

import (
	"encoding/binary"
	"time"
)

// What requests and responses have that the first version of their form did not know.

// moreOf returns the flags of what the request has that the first version did not know; 0 for most.
func moreOf(r *Request) byte {
	return flagIf(!r.ID.IsZero(), flagID) | flagIf(r.ID.Required, flagIDRequired) | flagIf(len(r.Items) > 0, flagItems) | flagIf(r.TTL != 0, flagTTL) |
		flagIf(r.List != nil, flagList) | flagIf(r.Sloppy, flagSloppy) | flagIf(len(r.Resume) > 0, flagResume) |
		flagIf(len(r.Session) > 0, flagSession)
}

func appendMore(dst []byte, r *Request, more byte) []byte {
	if more&flagID != 0 {
		dst = appendBytes(dst, r.ID.Session)
		dst = binary.AppendUvarint(dst, r.ID.Sequence)
		dst = binary.AppendUvarint(dst, r.ID.Floor)
	}
	if more&flagTTL != 0 {
		dst = binary.AppendVarint(dst, int64(r.TTL))
	}
	if more&flagList != 0 {
		q := r.List
		dst = append(dst, flagIf(q.KeysOnly, flagKeysOnly)|flagIf(q.Single, flagSingle))
		dst = binary.AppendUvarint(dst, uint64(q.Partition))
		dst = appendInt(dst, q.Limit)
		dst = appendBytes(dst, q.Prefix)
		dst = appendBytes(dst, q.After)
	}
	if more&flagResume != 0 {
		dst = appendBytes(dst, r.Resume)
	}
	if more&flagSession != 0 {
		dst = appendBytes(dst, r.Session)
	}
	if more&flagItems == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.Items)))
	for i := range r.Items {
		item := &r.Items[i]
		dst = append(dst, byte(item.Op), byte(item.Condition.Kind))
		if item.Condition.Kind != ConditionNone {
			dst = binary.AppendUvarint(dst, item.Condition.Version)
		}
		dst = binary.AppendVarint(dst, int64(item.TTL))
		dst = appendBytes(dst, item.Key)
		dst = appendBytes(dst, item.Value)
	}
	return dst
}

func appendListed(dst []byte, item *ListItem) []byte {
	dst = append(dst, flagIf(!item.Timestamp.IsZero(), flagTimestamp)|flagIf(len(item.Siblings) > 0, flagItemSiblings))
	if !item.Timestamp.IsZero() {
		dst = appendTime(dst, item.Timestamp)
	}
	dst = binary.AppendUvarint(dst, item.Version)
	dst = appendBytes(dst, item.Key)
	dst = appendBytes(dst, item.Value)
	if len(item.Siblings) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(item.Siblings)))
		for i := range item.Siblings {
			dst = appendSibling(dst, &item.Siblings[i])
		}
	}
	return dst
}

// flagItemSiblings says that concurrent versions follow a listed item.
const flagItemSiblings = 1 << 3

func (d *decoder) listed(item *ListItem) {
	flags := d.enum(flagTimestamp | flagItemSiblings)
	if flags&flagTimestamp != 0 {
		item.Timestamp = d.time()
	}
	item.Version = d.uvarint()
	item.Key, item.Value = d.bytes(), d.bytes()
	if flags&flagItemSiblings == 0 {
		return
	}
	item.Siblings = make([]Sibling, d.count(siblingBytesMin))
	for i := range item.Siblings {
		d.sibling(&item.Siblings[i])
	}
	if len(item.Siblings) == 0 {
		d.fail()
	}
}

// more reads what appendMore wrote, flags included. What is empty has no flag.
func (d *decoder) more(r *Request) {
	more := d.enum(flagID | flagIDRequired | flagItems | flagTTL | flagList | flagSloppy | flagResume | flagSession)
	r.Sloppy = more&flagSloppy != 0
	r.ID.Required = more&flagIDRequired != 0
	if more&flagID != 0 {
		r.ID.Session = d.bytes()
		r.ID.Sequence = d.uvarint()
		r.ID.Floor = d.uvarint()
	}
	if more&flagTTL != 0 {
		r.TTL = time.Duration(d.varint())
	}
	if more&flagList != 0 {
		r.List = &ListQuery{}
		flags := d.enum(flagKeysOnly | flagSingle)
		r.List.KeysOnly, r.List.Single = flags&flagKeysOnly != 0, flags&flagSingle != 0
		partition := d.uvarint()
		r.List.Partition, r.List.Limit = PartitionID(partition), d.int()
		r.List.Prefix, r.List.After = d.bytes(), d.bytes()
		if uint64(r.List.Partition) != partition {
			d.fail()
		}
	}
	if more&flagResume != 0 {
		r.Resume = d.bytes()
	}
	if more&flagSession != 0 {
		r.Session = d.bytes()
	}
	if more&flagItems != 0 {
		r.Items = make([]BatchItem, d.count(itemBytesMin))
		for i := range r.Items {
			d.item(&r.Items[i])
		}
	}
	if more == 0 || (more&flagID != 0) == r.ID.IsZero() || (more&flagItems != 0) == (len(r.Items) == 0) ||
		(more&flagTTL != 0) == (r.TTL == 0) || (more&flagResume != 0) == (len(r.Resume) == 0) ||
		(more&flagSession != 0) == (len(r.Session) == 0) {
		d.fail()
	}
}

func (d *decoder) moreOfResponse(r *Response) {
	more := d.enum(flagItemResults | flagListed | flagMore | flagExpires | flagHinted | flagSessionIs)
	r.More = more&flagMore != 0
	if more&flagItemResults != 0 {
		r.Items = make([]ItemResult, d.count(1))
		for i := range r.Items {
			r.Items[i].Found = d.enum(flagFound) != 0
		}
	}
	if more&flagListed != 0 {
		r.Listed = make([]ListItem, d.count(itemBytesMin-1))
		for i := range r.Listed {
			d.listed(&r.Listed[i])
		}
	}
	if more&flagExpires != 0 {
		r.Expires = d.time()
	}
	if more&flagHinted != 0 {
		r.Hinted = d.int()
	}
	if more&flagSessionIs != 0 {
		r.Session = d.bytes()
	}
	if more == 0 || (more&flagSessionIs != 0) == (len(r.Session) == 0) || (more&flagHinted != 0) == (r.Hinted == 0) || (more&flagExpires != 0) == r.Expires.IsZero() || (more&flagItemResults != 0) == (len(r.Items) == 0) || (more&flagListed != 0) == (len(r.Listed) == 0) {
		d.fail()
	}
}

func (d *decoder) item(item *BatchItem) {
	item.Op = Op(d.enum(byte(OpBatch)))
	item.Condition.Kind = ConditionKind(d.enum(byte(ConditionExists)))
	if item.Condition.Kind != ConditionNone {
		item.Condition.Version = d.uvarint()
	}
	item.TTL = time.Duration(d.varint())
	item.Key = d.bytes()
	item.Value = d.bytes()
}
