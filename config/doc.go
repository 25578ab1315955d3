// Package config is the configuration of one whole process: every setting of `caprock start`, where it may come from,
// and what makes it nonsense.
//
// A setting has one name, spelled alike everywhere: `--data-dir` on the command line, `CAPROCK_DATA_DIR` in the
// environment, `data-dir` in the YAML file. Flags win over the environment, the environment over the file, the file
// over the defaults.
//
// Invariants:
//   - A key that is not known is an error that names the nearest known one; nothing is ever ignored.
//   - A Config that Load returned is complete (nothing is left to be derived) and valid.
//   - Every error is one line that says what to do.
//
// It opens no file but the configuration file, listens on nothing and starts nothing.
package config
