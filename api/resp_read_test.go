package api

import (
	"bufio"
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzRESPReader feeds arbitrary bytes: the reader must end without panicking, and give back every command that was
// well-formed.
func FuzzRESPReader(f *testing.F) {
	for _, seed := range []string{
		"*1\r\n$4\r\nPING\r\n", "PING\r\n", "*2\r\n$1\r\na\r\n$0\r\n\r\n", "*9223372036854775807\r\n$1\r\n", "*1\r\n$9223372036854775807\r\nx\r\n",
		"\"a\" 'b", "'\\", "\"\\", "*0\r\n*-5\r\n", "*1\r\n$-0\r\n", "$3\r\nabc\r\n", " \t\n", "\"a\"b\n", "a\"b\n",
	} {
		f.Add([]byte(seed), "key", []byte("value"))
	}
	cfg := DefaultRESPConfig()
	f.Fuzz(func(t *testing.T, noise []byte, key string, value []byte) {
		reader := func(b []byte) *respReader {
			return &respReader{in: bufio.NewReaderSize(bytes.NewReader(b), respBufferBytes), cfg: &cfg}
		}
		r := reader(noise)
		for range len(noise) + 1 {
			if _, err := r.next(); err != nil {
				break
			}
		}
		got, err := reader(encodeCommand("SET", key, string(value))).next()
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%q", []string{"SET", key, string(value)}), fmt.Sprintf("%q", got))
	})
}
