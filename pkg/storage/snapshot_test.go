package storage

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

const (
	snapGroup  kv.GroupID = 7
	otherGroup kv.GroupID = 8
	snapIndex             = 300
)

// fillGroup writes a group with a log and state, of the mark in every value.
func fillGroup(b *Batch, g kv.GroupID, index uint64, keys int, mark string) {
	b.SetHardState(g, HardState{Term: 3, Vote: 2, Commit: index})
	b.SetTruncated(g, causal.Position{Term: 1, Index: 1})
	for i := uint64(2); i <= index; i++ {
		b.AppendEntry(g, LogEntry{Index: i, Term: 3, Data: []byte(mark)})
	}
	b.SetApplied(g, Applied{Index: index, Term: 3, ConfState: []byte("conf")})
	b.SetDedup(g, []byte("op"), []byte(mark))
	for i := range keys {
		b.SetStrong(g, fmt.Appendf(nil, "key-%05d", i), Strong{Revision: index, Value: []byte(mark)})
	}
}

// pull moves a snapshot from one engine into a stage of another, in small pieces.
func pull(t testing.TB, from, to *Engine, g kv.GroupID, bytesMax int) *Stage {
	t.Helper()
	s, err := from.SnapshotGroup(g)
	require.NoError(t, err)
	defer s.Close()
	stage := to.NewStage(g)
	var after []byte
	for {
		rows, next, err := s.AppendRows(nil, after, bytesMax)
		require.NoError(t, err)
		require.NoError(t, stage.Add(rows))
		if after = next; after == nil {
			break
		}
	}
	require.NoError(t, stage.Finish())
	require.Equal(t, s.Applied(), stage.Applied())
	return stage
}

// groupRows describes everything an engine holds of a group.
func groupRows(t testing.TB, e *Engine, g kv.GroupID) (out []string) {
	t.Helper()
	lower := appendGroupPrefix(nil, g)
	require.NoError(t, e.scan(lower, appendPrefixEnd(nil, lower), lower, func(key, row []byte) (bool, error) {
		out = append(out, fmt.Sprintf("%x=%x", key, row))
		return true, verifyRow(row, key)
	}))
	return out
}

func staged(t testing.TB, e *Engine) []string {
	t.Helper()
	names, err := e.fs.List(e.fs.PathJoin(e.dir, stageDir))
	if err != nil {
		return nil
	}
	return names
}

func source(t testing.TB) *Engine {
	src := openMem(t)
	write(t, src, func(b *Batch) {
		fillGroup(b, snapGroup, snapIndex, 500, "new")
		fillGroup(b, otherGroup, 20, 3, "other")
		b.SetSiblings(6, []byte("k"), oneSibling(1, 1, "leave me"))
	})
	return src
}

func install(e *Engine, s *Stage) error {
	return e.InstallGroup(s, HardState{Term: 9, Vote: 4, Commit: snapIndex}, causal.Position{Term: 3, Index: snapIndex})
}

func TestInstalledSnapshotReplacesTheGroupAndNothingElse(t *testing.T) {
	src, dst := source(t), openMem(t)
	write(t, dst, func(b *Batch) {
		fillGroup(b, snapGroup, 40, 700, "old")
		fillGroup(b, otherGroup, 11, 3, "mine")
		b.SetSiblings(6, []byte("k"), oneSibling(2, 2, "mine"))
	})
	other := groupRows(t, dst, otherGroup)
	stage := pull(t, src, dst, snapGroup, 1000)
	require.NotEmpty(t, staged(t, dst))
	require.NoError(t, install(dst, stage))
	stage.Discard()
	require.Empty(t, staged(t, dst))

	require.Equal(t, other, groupRows(t, dst, otherGroup))
	_, found, err := dst.State().Siblings(6, []byte("k"))
	require.NoError(t, err)
	require.True(t, found, "the eventual lane's rows are no part of a snapshot")
	h, _, err := dst.Log().HardState(snapGroup)
	require.NoError(t, err)
	require.Equal(t, HardState{Term: 9, Vote: 4, Commit: snapIndex}, h)
	_, found, err = dst.Log().LastEntry(snapGroup)
	require.NoError(t, err)
	require.False(t, found, "the old log went with the old state")
	// Behind the hard state and the truncated position it is the source's rows, without its log.
	mine, theirs := groupRows(t, dst, snapGroup), groupRows(t, src, snapGroup)
	require.Equal(t, theirs[len(theirs)-502:], mine[2:])
	write(t, dst, func(b *Batch) { b.SetStrong(snapGroup, []byte("key-00000"), Strong{Revision: snapIndex + 1}) })
	s, _, err := dst.State().Strong(snapGroup, []byte("key-00000"))
	require.NoError(t, err)
	require.EqualValues(t, snapIndex+1, s.Revision)
}

func TestSnapshotIsOfOneMoment(t *testing.T) {
	src, dst := source(t), openMem(t)
	s, err := src.SnapshotGroup(snapGroup)
	require.NoError(t, err)
	defer s.Close()
	write(t, src, func(b *Batch) {
		b.SetApplied(snapGroup, Applied{Index: snapIndex + 1, Term: 3})
		b.SetStrong(snapGroup, []byte("key-00499"), Strong{Revision: snapIndex + 1})
	})
	rows, next, err := s.AppendRows(nil, nil, 1<<20)
	require.NoError(t, err)
	require.Nil(t, next)
	stage := dst.NewStage(snapGroup)
	require.NoError(t, stage.Add(rows))
	require.NoError(t, stage.Finish())
	require.NoError(t, install(dst, stage))
	got, _, err := dst.State().Strong(snapGroup, []byte("key-00499"))
	require.NoError(t, err)
	require.EqualValues(t, snapIndex, got.Revision)
	a, _, err := dst.Log().Applied(snapGroup)
	require.NoError(t, err)
	require.EqualValues(t, snapIndex, a.Index)
}

// Pebble's snapshots do not survive an excise: they would go on without the rows that it took away.
func TestSnapshotOfReplacedRowsIsLostAndSaysSo(t *testing.T) {
	src, dst := source(t), source(t)
	s, err := dst.SnapshotGroup(snapGroup)
	require.NoError(t, err)
	defer s.Close()
	_, next, err := s.AppendRows(nil, nil, 100)
	require.NoError(t, err)
	require.NoError(t, install(dst, pull(t, src, dst, snapGroup, 1<<20)))
	_, _, err = s.AppendRows(nil, next, 100)
	require.ErrorIs(t, err, ErrSnapshotLost)
}

func TestSnapshotOfAGroupThatIsNotThere(t *testing.T) {
	_, err := openMem(t).SnapshotGroup(1)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestStageRefusesRowsThatAreNotASnapshot(t *testing.T) {
	src := source(t)
	s, err := src.SnapshotGroup(snapGroup)
	require.NoError(t, err)
	defer s.Close()
	rows, next, err := s.AppendRows(nil, nil, 100)
	require.NoError(t, err)
	more, _, err := s.AppendRows(nil, next, 100)
	require.NoError(t, err)
	flipped := append([]byte(nil), rows...)
	flipped[len(flipped)-7] ^= 1
	for name, try := range map[string][][]byte{
		"cut short":        {rows[:len(rows)-1]},
		"flipped bit":      {flipped},
		"begins elsewhere": {more},
		"out of order":     {rows, more, more},
		"empty":            {},
	} {
		stage := src.NewStage(snapGroup)
		var err error
		for _, r := range try {
			if err == nil {
				err = stage.Add(r)
			}
		}
		if err == nil {
			err = stage.Finish()
		}
		require.ErrorIs(t, err, ErrCorruption, name)
		stage.Discard()
	}
	require.Empty(t, staged(t, src))
	stage := src.NewStage(otherGroup)
	defer stage.Discard()
	require.Error(t, stage.Add(rows), "rows of another group do not check out")
}

func TestDamagedRowIsNotHandedOn(t *testing.T) {
	src := source(t)
	raw := src.db.NewBatch()
	require.NoError(t, raw.Set(appendStateKey(nil, snapGroup, []byte("key-00100")), []byte("nonsense"), nil))
	require.NoError(t, src.db.Apply(raw, nil))
	s, err := src.SnapshotGroup(snapGroup)
	require.NoError(t, err)
	defer s.Close()
	_, _, err = s.AppendRows(nil, nil, 1<<20)
	require.ErrorIs(t, err, ErrCorruption)
}

func TestOpenRemovesWhatACrashLeftOfAStage(t *testing.T) {
	fs := NewCrashableMemFS()
	e, err := Open("data", smallConfig(), Deps{FS: fs})
	require.NoError(t, err)
	pull(t, source(t), e, snapGroup, 1<<20)
	require.Len(t, staged(t, e), 1)
	require.NoError(t, e.Close())
	e, err = Open("data", smallConfig(), Deps{FS: fs})
	require.NoError(t, err)
	require.Empty(t, staged(t, e))
	require.NoError(t, e.Close())
}

// installScript brings an engine on the filesystem to the moment of an install, and installs. n counts the operations
// of the install; the power is cut, or an error injected, at the operation given.
type installScript struct {
	mem   *vfs.MemFS
	armed bool
	n, at int
	left  *vfs.MemFS // as the power cut left it
	fail  error
}

func (s *installScript) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpCreate, errorfs.OpLink, errorfs.OpRemove, errorfs.OpFileWrite, errorfs.OpFileSync,
		errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpRename, errorfs.OpReuseForWrite, errorfs.OpOpenDir:
	default:
		return nil
	}
	if !s.armed {
		return nil
	}
	s.n++
	if s.n != s.at {
		return nil
	}
	if s.fail != nil {
		return s.fail
	}
	s.left = s.mem.CrashClone(vfs.CrashCloneCfg{})
	return nil
}

func (s *installScript) String() string { return "install script" }

// run returns the error of the install. The old rows are in the memtable or in tables.
func (s *installScript) run(t *testing.T, src *Engine, flushed bool) (installed error) {
	s.mem = NewCrashableMemFS()
	e, err := Open("data", smallConfig(), Deps{FS: errorfs.Wrap(s.mem, s)})
	require.NoError(t, err)
	write(t, e, func(b *Batch) { fillGroup(b, snapGroup, 40, 700, "old") })
	if flushed {
		require.NoError(t, e.db.Flush())
	}
	stage := pull(t, src, e, snapGroup, 1<<20)
	s.armed = true
	installed = install(e, stage)
	s.armed = false
	stage.Discard()
	if s.left == nil {
		s.left = s.mem.CrashClone(vfs.CrashCloneCfg{})
	}
	_ = e.Close() // with injected errors it may fail
	return installed
}

// check opens what is left and reports whether the snapshot is there. Anything but all or nothing fails the test.
func (s *installScript) check(t *testing.T, what string) bool {
	e, err := Open("data", smallConfig(), Deps{FS: s.left})
	require.NoError(t, err, what)
	defer func() { require.NoError(t, e.Close()) }()
	h, found, err := e.Log().HardState(snapGroup)
	require.NoError(t, err)
	require.True(t, found, what)
	rows := strings.Join(groupRows(t, e, snapGroup), "\n")
	isNew := h.Term == 9
	if isNew {
		require.Equal(t, 2+1+1+500, strings.Count(rows, "\n")+1, what)
		require.NotContains(t, rows, fmt.Sprintf("%x", "old"), what)
	} else {
		require.Equal(t, 2+39+1+1+700, strings.Count(rows, "\n")+1, what)
		require.NotContains(t, rows, fmt.Sprintf("%x", "new"), what)
	}
	require.Empty(t, staged(t, e))
	return isNew
}

func TestPowerCutAtAnyMomentOfAnInstallLeavesAllOrNothing(t *testing.T) {
	src := source(t)
	for _, flushed := range []bool{false, true} {
		all := &installScript{}
		require.NoError(t, all.run(t, src, flushed))
		require.True(t, all.check(t, "after the install"), "an install is durable at return")
		require.Greater(t, all.n, 8)
		before, after := 0, 0
		for at := 1; at <= all.n; at++ {
			s := &installScript{at: at}
			require.NoError(t, s.run(t, src, flushed))
			if s.check(t, fmt.Sprintf("flushed=%t: power cut at operation %d of %d", flushed, at, all.n)) {
				after++
			} else {
				before++
			}
		}
		require.Positive(t, before)
	}
}

func TestDiskErrorAtAnyMomentOfAnInstallIsToldAndLeavesAllOrNothing(t *testing.T) {
	src := source(t)
	for _, flushed := range []bool{false, true} {
		all := &installScript{}
		require.NoError(t, all.run(t, src, flushed))
		for at := 1; at <= all.n; at++ {
			s := &installScript{at: at, fail: errors.New("the disk is on fire")}
			err := s.run(t, src, flushed)
			what := fmt.Sprintf("flushed=%t: error at operation %d of %d (%v)", flushed, at, all.n, err)
			if isNew := s.check(t, what); err == nil {
				require.True(t, isNew, what)
			}
		}
	}
}

func TestTruncationRemovesThePrefixAndMovesTheBeginning(t *testing.T) {
	e := openMem(t)
	write(t, e, func(b *Batch) { fillGroup(b, snapGroup, 100, 1, "v") })
	from := uint64(1)
	for _, through := range []uint64{30, 31, 70} {
		write(t, e, func(b *Batch) { b.TruncateLog(snapGroup, from, causal.Position{Term: 3, Index: through}) })
		p, _, err := e.Log().Truncated(snapGroup)
		require.NoError(t, err)
		require.Equal(t, causal.Position{Term: 3, Index: through}, p)
		_, err = e.Log().Entries(snapGroup, through, 101, 1<<20)
		require.ErrorIs(t, err, ErrTruncated)
		entries, err := e.Log().Entries(snapGroup, through+1, 101, 1<<20)
		require.NoError(t, err)
		require.Len(t, entries, int(100-through))
		from = through
	}
}

// Found by review: with flushed rows, a snapshot taken between the beginning of an install and its excise looked complete
// and lacked rows.
func TestNoSnapshotIsTakenWhileAnotherIsInstalled(t *testing.T) {
	const g kv.GroupID = 5
	e, err := OpenInMemory()
	require.NoError(t, err)
	defer e.Close()
	b := e.NewBatch()
	defer b.Close()
	b.SetApplied(g, Applied{Index: 20, Term: 1, ConfState: []byte("c")})
	b.SetStrong(g, []byte("k"), Strong{Value: []byte("v"), Revision: 20})
	require.NoError(t, e.ApplySync(b))
	require.NoError(t, e.db.Flush())

	before, err := e.SnapshotGroup(g)
	require.NoError(t, err)
	defer before.Close()
	e.installs.step(g)
	_, err = e.SnapshotGroup(g)
	require.ErrorIs(t, err, ErrSnapshotLost)
	_, _, err = before.AppendRows(nil, nil, 1<<20)
	require.ErrorIs(t, err, ErrSnapshotLost)
	e.installs.step(g)
	_, _, err = before.AppendRows(nil, nil, 1<<20)
	require.ErrorIs(t, err, ErrSnapshotLost)
	after, err := e.SnapshotGroup(g)
	require.NoError(t, err)
	after.Close()
}
