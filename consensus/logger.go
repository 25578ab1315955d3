package consensus

import (
	"context"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"

	"github.com/caprockdb/caprock/pkg/kv"
)

// raftLogger adapts Raft's logger. Raft tells every vote and every conflict at its info level, which for a node with
// many groups is a debug matter; what operators need (who leads) the loop logs itself.
type raftLogger struct{ log *slog.Logger }

var _ raft.Logger = raftLogger{}

func newRaftLogger(log *slog.Logger, g kv.GroupID) raftLogger {
	return raftLogger{log: log.With("group", uint64(g))}
}

func (l raftLogger) put(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	text := ""
	if format == "" {
		text = fmt.Sprint(v...)
	} else {
		text = fmt.Sprintf(format, v...)
	}
	l.log.Log(ctx, level, "raft: "+text)
}

func (l raftLogger) Debug(v ...any)                   { l.put(slog.LevelDebug, "", v) }
func (l raftLogger) Debugf(format string, v ...any)   { l.put(slog.LevelDebug, format, v) }
func (l raftLogger) Info(v ...any)                    { l.put(slog.LevelDebug, "", v) }
func (l raftLogger) Infof(format string, v ...any)    { l.put(slog.LevelDebug, format, v) }
func (l raftLogger) Warning(v ...any)                 { l.put(slog.LevelWarn, "", v) }
func (l raftLogger) Warningf(format string, v ...any) { l.put(slog.LevelWarn, format, v) }
func (l raftLogger) Error(v ...any)                   { l.put(slog.LevelError, "", v) }
func (l raftLogger) Errorf(format string, v ...any)   { l.put(slog.LevelError, format, v) }

// Fatal and Panic both panic: only the command exits the process.
func (l raftLogger) Fatal(v ...any)                 { l.Panic(v...) }
func (l raftLogger) Fatalf(format string, v ...any) { l.Panicf(format, v...) }

func (l raftLogger) Panic(v ...any) {
	l.put(slog.LevelError, "", v)
	panic("raft: " + fmt.Sprint(v...))
}

func (l raftLogger) Panicf(format string, v ...any) {
	l.put(slog.LevelError, format, v)
	panic("raft: " + fmt.Sprintf(format, v...))
}
