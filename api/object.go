package api

import (
	"unicode/utf16"
	"unicode/utf8"

	"github.com/caprockdb/caprock/pkg/kv"
)

// decodeStrings reads a JSON object whose members are all strings with known names, each at most once and in any order.
// values[i] becomes the string of names[i], nil when it is absent; an empty string is not nil. The strings share body's
// memory, and body is overwritten where it held escapes.
//
// It is written by hand for two reasons: a value of a megabyte is neither copied nor scanned twice, and encoding/json
// would accept what the contract refuses (other letter case in names, repeated names, invalid UTF-8).
func decodeStrings(body []byte, names []string, values [][]byte) *kv.Error {
	i := skipSpace(body, 0)
	if i == len(body) || body[i] != '{' {
		return malformed(i, "an object opens with {")
	}
	i = skipSpace(body, i+1)
	if i < len(body) && body[i] == '}' {
		return trailing(body, i+1)
	}
	for {
		which, next, err := decodeName(body, i, names)
		if err != nil {
			return err
		}
		if values[which] != nil {
			return kv.Errorf(kv.CodeBadRequest, "field %q is given more than once", names[which])
		}
		i = skipSpace(body, next)
		if i == len(body) || body[i] != ':' {
			return malformed(i, "a name is followed by :")
		}
		i = skipSpace(body, i+1)
		if i < len(body) && body[i] != '"' {
			return kv.Errorf(kv.CodeBadRequest, "field %q is not a string", names[which])
		}
		if values[which], i, err = decodeString(body, i); err != nil {
			return err
		}
		i = skipSpace(body, i)
		switch {
		case i < len(body) && body[i] == '}':
			return trailing(body, i+1)
		case i < len(body) && body[i] == ',':
			i = skipSpace(body, i+1)
		default:
			return malformed(i, "a member is followed by , or }")
		}
	}
}

// fieldNameBytesMax bounds how much of an unknown name is repeated in an answer.
const fieldNameBytesMax = 64

// decodeName reads a member's name and returns its index in names.
func decodeName(body []byte, i int, names []string) (which, next int, _ *kv.Error) {
	name, next, err := decodeString(body, i)
	if err != nil {
		return 0, 0, err
	}
	for which, known := range names {
		if string(name) == known {
			return which, next, nil
		}
	}
	if len(name) > fieldNameBytesMax {
		name = name[:fieldNameBytesMax]
	}
	return 0, 0, kv.Errorf(kv.CodeBadRequest, "unknown field %q; did you mean %q?", name, kv.Nearest(string(name), names))
}

func malformed(at int, rule string) *kv.Error {
	return kv.Errorf(kv.CodeBadRequest, "malformed JSON at byte %d: %s", at, rule)
}

// trailing refuses anything but white space after the object.
func trailing(body []byte, i int) *kv.Error {
	if i = skipSpace(body, i); i < len(body) {
		return malformed(i, "nothing follows the object")
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// decodeString reads the JSON string that starts at body[i], undoing its escapes in place: what an escape stands for is
// never longer than the escape.
func decodeString(body []byte, i int) (value []byte, next int, _ *kv.Error) {
	if i >= len(body) || body[i] != '"' {
		return nil, 0, malformed(i, `a string opens with "`)
	}
	start := i + 1
	i = start
	out := start // where the next decoded byte goes; behind i once an escape was undone
	for i < len(body) {
		run := i
		for i < len(body) && body[i] >= ' ' && body[i] != '"' && body[i] != '\\' {
			i++
		}
		if out < run {
			copy(body[out:], body[run:i])
		}
		out += i - run
		switch {
		case i == len(body):
		case body[i] == '"':
			value = body[start:out:out]
			if !utf8.Valid(value) {
				return nil, 0, malformed(start, "a string is valid UTF-8; use base64 for other bytes")
			}
			return value, i + 1, nil
		case body[i] != '\\':
			return nil, 0, malformed(i, "a control character is escaped")
		default:
			r, width := decodeEscape(body[i:])
			if width == 0 {
				return nil, 0, malformed(i, "an escape is one of those of JSON, and surrogates come in pairs")
			}
			out += utf8.EncodeRune(body[out:], r)
			i += width
		}
	}
	return nil, 0, malformed(i, `a string closes with "`)
}

// decodeEscape reads the escape at the start of b. A width of 0 means that it is none.
func decodeEscape(b []byte) (r rune, width int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return 0, 0
	}
	r = decodeUnit(b)
	if r < 0 || !utf16.IsSurrogate(r) {
		return r, widthOf(r, 6)
	}
	r = utf16.DecodeRune(r, decodeUnit(b[6:]))
	if r == utf8.RuneError {
		return 0, 0
	}
	return r, 12
}

func widthOf(r rune, width int) int {
	if r < 0 {
		return 0
	}
	return width
}

// decodeUnit reads \uXXXX, −1 if b does not start with it.
func decodeUnit(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		digit := unhex(c)
		if digit < 0 {
			return -1
		}
		r = r<<4 | rune(digit)
	}
	return r
}
