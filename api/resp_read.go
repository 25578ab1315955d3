package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/tidwall/redcon"
)

// Commands are read by a parser of our own, replies are written with redcon's append functions. redcon's reader has no
// limits: a length of 2^63−1 makes it index out of range, a multibulk of as many elements makes it spin for ever, and
// its buffer grows with whatever a client sends.

const (
	// respBufferBytes is the read buffer of a connection, and with it the longest inline command.
	respBufferBytes = 16 << 10
	// respChunkBytes is what is allocated for a bulk string before any of it arrived.
	respChunkBytes = 64 << 10
)

// protocolError is a violation of the protocol, after which the connection cannot go on.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return "Protocol error: " + e.text }

// respReader reads commands. The arguments of each are the caller's own.
type respReader struct {
	in  *bufio.Reader
	cfg *RESPConfig
}

// next reads one command. No arguments and no error mean that the client sent an empty one, which has no reply.
func (r *respReader) next() ([][]byte, error) {
	line, err := r.line()
	if err != nil || len(line) == 0 {
		return nil, err
	}
	if line[0] != '*' {
		return parseInline(line)
	}
	count, ok := parseLength(line[1:])
	if !ok || count > r.cfg.ArgsMax {
		return nil, &protocolError{fmt.Sprintf("invalid multibulk length (the limit is %d)", r.cfg.ArgsMax)}
	}
	if count <= 0 {
		return nil, nil
	}
	var args [][]byte // grows with what arrives, not with what was announced
	left := r.cfg.CommandBytesMax
	for range count {
		arg, err := r.bulk(left)
		if err != nil {
			return nil, err
		}
		left -= len(arg)
		args = append(args, arg)
	}
	return args, nil
}

// line reads up to the end of the line, and returns the line without it. It is valid until the next read.
func (r *respReader) line() ([]byte, error) {
	line, err := r.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, &protocolError{"too big inline request"}
	}
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, nil
}

// bulk reads a bulk string of at most left bytes.
func (r *respReader) bulk(left int) ([]byte, error) {
	line, err := r.line()
	if err != nil {
		return nil, unexpected(err)
	}
	if len(line) == 0 || line[0] != '$' {
		return nil, &protocolError{"expected '$'"}
	}
	size, ok := parseLength(line[1:])
	if limit := min(left, r.cfg.BulkBytesMax); !ok || size < 0 || size > limit {
		return nil, &protocolError{fmt.Sprintf("invalid bulk length (the limit is %d bytes)", limit)}
	}
	arg := make([]byte, 0, min(size+2, respChunkBytes))
	for len(arg) < size+2 {
		if len(arg) == cap(arg) {
			arg = append(arg, 0)[:len(arg)]
		}
		n, err := r.in.Read(arg[len(arg):min(cap(arg), size+2)])
		if err != nil {
			return nil, unexpected(err)
		}
		arg = arg[:len(arg)+n]
	}
	if arg[size] != '\r' || arg[size+1] != '\n' {
		return nil, &protocolError{"a bulk string ends with CR LF"}
	}
	return arg[:size:size], nil
}

// unexpected names the end of the stream inside a command.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseLength reads a decimal number that fits its purpose: longer ones are nonsense whatever they say.
func parseLength(b []byte) (int, bool) {
	const digitsMax = 10
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > digitsMax {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}

// parseInline reads a command typed as one line, with quotes where a word holds spaces. The line is bounded and has no
// lengths in it, so redcon's parser is safe here.
func parseInline(line []byte) ([][]byte, error) {
	switch line[0] {
	case '$', '+', '-', ':':
		return nil, &protocolError{"expected '*' or an inline command"}
	}
	for len(line) > 0 && line[0] == ' ' {
		line = line[1:]
	}
	if len(line) == 0 {
		return nil, nil
	}
	raw := append(append(make([]byte, 0, len(line)+2), line...), '\r', '\n')
	complete, args, _, _, err := redcon.ReadNextCommand(raw, nil)
	if err != nil || !complete {
		return nil, &protocolError{"unbalanced quotes in request"}
	}
	return args, nil
}
