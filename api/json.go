package api

import (
	"encoding/base64"
	"strconv"
	"time"
	"unicode/utf8"
)

// The append functions write JSON without reflection, because answers are small and many: encoding/json would cost more
// than the rest of the front. Each returns the extended buffer.

const (
	hexDigits = "0123456789abcdef"
	// timeLayout is RFC 3339 with milliseconds, which is all that a hybrid clock holds of wall time.
	timeLayout = "2006-01-02T15:04:05.000Z07:00"
)

// appendText appends s, which is valid UTF-8, as a JSON string.
func appendText[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// appendSafeText appends s as a JSON string, with what is not valid UTF-8 replaced: for messages, never for data.
func appendSafeText(dst []byte, s string) []byte {
	if utf8.ValidString(s) {
		return appendText(dst, s)
	}
	return appendText(dst, string([]rune(s)))
}

// appendBytes appends the member `name` with the bytes b: as text when they are valid UTF-8, else as base64 followed by
// a member `encodingName` that says so. No comma precedes it.
func appendBytes(dst []byte, name, encodingName string, b []byte) []byte {
	dst = appendText(dst, name)
	dst = append(dst, ':')
	if utf8.Valid(b) {
		return appendText(dst, b)
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	dst = append(dst, `",`...)
	dst = appendText(dst, encodingName)
	return append(dst, `:"base64"`...)
}

// appendContext appends a context token in its text form, unpadded base64url, as a JSON string.
func appendContext(dst, token []byte) []byte {
	dst = append(dst, '"')
	dst = base64.RawURLEncoding.AppendEncode(dst, token)
	return append(dst, '"')
}

// contextText returns a context token as headers and parameters spell it, "" for none.
func contextText(token []byte) string { return base64.RawURLEncoding.EncodeToString(token) }

// appendTime appends the time as a JSON string.
func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, timeLayout)
	return append(dst, '"')
}

// appendBool appends true or false.
func appendBool(dst []byte, b bool) []byte { return strconv.AppendBool(dst, b) }
