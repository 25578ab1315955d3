package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockFile takes the lock at path for the life of this process, or until the file is closed. The kernel releases it
// however the process ends.
//
// These are POSIX record locks, as the storage engine takes on its directory: they are the only kind that tells who the
// holder is. They have a trap: closing any descriptor of the file in the holding process releases them, so the holder
// never opens the file a second time.
func lockFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK})
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		pid, _ := lockHolder(path)
		return nil, fmt.Errorf("a demo cluster already runs in %s (pid %d): stop it with --stop or choose another --data-dir",
			filepath.Dir(path), pid)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// lockHolder returns the process that holds the lock at path. It must not be asked by the holder itself.
func lockHolder(path string) (pid int, held bool) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil || lock.Type == syscall.F_UNLCK {
		return 0, false
	}
	return int(lock.Pid), true
}
