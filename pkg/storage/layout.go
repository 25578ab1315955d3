package storage

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// layoutRow is the node row that says which version of the key layout the directory has.
	layoutRow = "storage/layout"
	// layoutVersion is the version described in keys.go.
	layoutVersion byte = 1
)

// checkLayout makes sure that the directory holds rows in the layout that this version knows. It claims an empty one.
func (e *Engine) checkLayout() error {
	value, found, err := e.NodeRow(layoutRow)
	if err != nil {
		return err
	}
	if found {
		if len(value) != 1 || value[0] != layoutVersion {
			return fmt.Errorf("%w: %s has key layout %v where this version knows %d; start the version of Caprock that wrote it",
				ErrFormat, e.dir, value, layoutVersion)
		}
		return nil
	}
	it, err := e.db.NewIter(&pebble.IterOptions{})
	if err != nil {
		return e.readFailed(nil, err)
	}
	foreign := it.First()
	if err := it.Close(); err != nil {
		return e.readFailed(nil, err)
	}
	if foreign {
		return fmt.Errorf("%w: %s holds a Pebble database that is not Caprock's; choose another data directory",
			ErrFormat, e.dir)
	}
	b := e.NewBatch()
	defer b.Close()
	b.SetNodeRow(layoutRow, []byte{layoutVersion})
	return e.ApplySync(b)
}
