package api

import (
	"net/url"
	"strings"

	"github.com/caprockdb/caprock/pkg/kv"
)

// route returns the path to dispatch on, and whether it is still percent-encoded.
//
// net/url keeps RawPath only where encoding Path again would not give back what the client sent. Without RawPath, Path
// is the decoded path and each of its characters stands where the client put it, slashes too; with it, only RawPath
// tells a slash that separates from one that was encoded.
func route(u *url.URL) (path string, encoded bool) {
	if u.RawPath != "" {
		return u.RawPath, true
	}
	return u.Path, false
}

// pathKey returns the bytes that the rest of a path spells, percent-decoded once if it is still encoded. Nothing is
// cleaned: dots, slashes and plus signs are what they are.
func pathKey(rest string, encoded bool) ([]byte, error) {
	if !encoded || strings.IndexByte(rest, '%') < 0 {
		return []byte(rest), nil
	}
	key := make([]byte, 0, len(rest))
	for i := 0; i < len(rest); i++ {
		if rest[i] != '%' {
			key = append(key, rest[i])
			continue
		}
		if i+2 >= len(rest) {
			return nil, kv.Errorf(kv.CodeBadRequest, "the path ends in the middle of a percent-escape")
		}
		hi, lo := unhex(rest[i+1]), unhex(rest[i+2])
		if hi < 0 || lo < 0 {
			return nil, kv.Errorf(kv.CodeBadRequest, "%q in the path is not a percent-escape", rest[i:i+3])
		}
		key = append(key, byte(hi<<4|lo))
		i += 2
	}
	return key, nil
}

// unhex returns the value of a hexadecimal digit, -1 for any other byte.
func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	default:
		return -1
	}
}
