package storage

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// keyBuffer is scratch for the key of a point read.
type keyBuffer struct{ b []byte }

// get reads one row and hands its payload to use, which must copy what it keeps. It reports whether the row exists.
func (e *Engine) get(key []byte, format byte, use func(payload []byte) error) (bool, error) {
	if err := e.usable(); err != nil {
		return false, err
	}
	row, closer, err := e.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, e.health.stopped()
	}
	if err != nil {
		return false, e.readFailed(key, err)
	}
	err = e.useRow(key, row, format, use)
	if closeErr := closer.Close(); err == nil && closeErr != nil {
		err = e.readFailed(key, closeErr)
	}
	return err == nil, err
}

// useRow checks a row that was read and hands its payload to use.
func (e *Engine) useRow(key, row []byte, format byte, use func(payload []byte) error) error {
	// What Pebble read while it called Logger.Fatalf may be nonsense.
	if err := e.health.stopped(); err != nil {
		return err
	}
	payload, err := openRow(row, format, key)
	if err == nil {
		if err = use(payload); err != nil {
			err = corruptRow(key, "%s", err)
		}
	}
	if err != nil {
		e.health.noteCorruption(keyspace(key), err)
	}
	return err
}

// readFailed says what a failed read of the key means.
func (e *Engine) readFailed(key []byte, err error) error {
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	if pebble.IsCorruptionError(err) {
		err = &corruptionError{detail: "a block around the " + describeKey(key) + " is damaged", cause: err}
		e.health.noteCorruption(keyspace(key), err)
		return err
	}
	return e.failed("read the "+describeKey(key), err)
}

// failed wraps an error of Pebble's that is neither corruption nor a stop.
func (e *Engine) failed(what string, err error) error {
	if stopped := e.health.stopped(); stopped != nil {
		return stopped
	}
	return fmt.Errorf("storage: %s: %w", what, err)
}

// scan calls fn for each key in [lower, upper) that starts at or after from, until fn returns false or an error. Key and
// row are valid until fn returns.
func (e *Engine) scan(lower, upper, from []byte, fn func(key, row []byte) (bool, error)) error {
	if err := e.usable(); err != nil {
		return err
	}
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return e.readFailed(lower, err)
	}
	more := true
	for ok := it.SeekGE(from); ok && more && err == nil; {
		var row []byte
		if row, err = it.ValueAndErr(); err != nil {
			err = e.readFailed(it.Key(), err)
			break
		}
		if err = e.health.stopped(); err != nil {
			break
		}
		if more, err = fn(it.Key(), row); more && err == nil {
			ok = it.Next()
		}
	}
	if closeErr := it.Close(); err == nil && closeErr != nil {
		err = e.readFailed(from, closeErr)
	}
	return err
}

// NodeRow returns a row of the node itself. The value is the caller's own.
func (e *Engine) NodeRow(name string) (value []byte, found bool, err error) {
	return e.getOpaque(appendNodeKey(nil, name))
}

// getOpaque reads a row whose payload is the caller's.
func (e *Engine) getOpaque(key []byte) (value []byte, found bool, err error) {
	found, err = e.get(key, formatOpaque, func(payload []byte) error {
		value = append([]byte{}, payload...)
		return nil
	})
	return value, found, err
}
