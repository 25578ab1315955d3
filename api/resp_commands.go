package api

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/redcon"

	"github.com/caprockdb/caprock/pkg/kv"
)

// respVersion is the version of Redis whose replies ours are modelled on. Clients read it to know what to expect.
const respVersion = "7.0.0"

// respCommand is one command of the table.
type respCommand struct {
	// arity is the number of arguments, the name included; negative: at least as many.
	arity int
	// flags, first, last and step are what COMMAND says: the kind of command and where its keys are.
	flags             []string
	first, last, step int
	run               func(c *respConn, args [][]byte)
}

// respCommands returns the table of commands by their names in lower case.
func respCommands() map[string]respCommand {
	fast, read, write := []string{"fast"}, []string{"readonly", "fast"}, []string{"write"}
	return map[string]respCommand{
		"ping":        {-1, fast, 0, 0, 0, (*respConn).ping},
		"echo":        {2, fast, 0, 0, 0, (*respConn).echo},
		"select":      {2, fast, 0, 0, 0, (*respConn).selectDB},
		"quit":        {-1, fast, 0, 0, 0, (*respConn).quitConn},
		"hello":       {-1, fast, 0, 0, 0, (*respConn).hello},
		"command":     {-1, fast, 0, 0, 0, (*respConn).describe},
		"config":      {-2, fast, 0, 0, 0, (*respConn).config},
		"info":        {-1, fast, 0, 0, 0, (*respConn).info},
		"consistency": {-1, fast, 0, 0, 0, (*respConn).consistency},
		"get":         {2, read, 1, 1, 1, (*respConn).get},
		"strlen":      {2, read, 1, 1, 1, (*respConn).strlen},
		"mget":        {-2, read, 1, -1, 1, (*respConn).mget},
		"exists":      {-2, read, 1, -1, 1, (*respConn).exists},
		"set":         {-3, write, 1, 1, 1, (*respConn).set},
		"mset":        {-3, write, 1, -1, 2, (*respConn).mset},
		"del":         {-2, write, 1, -1, 1, (*respConn).del},
		"setnx":       {3, write, 1, 1, 1, (*respConn).setnx},
		"setex":       {4, write, 1, 1, 1, (*respConn).setex},
		"psetex":      {4, write, 1, 1, 1, (*respConn).psetex},
		"getset":      {3, write, 1, 1, 1, (*respConn).getset},
		"getdel":      {2, write, 1, 1, 1, (*respConn).getdel},
		"append":      {3, write, 1, 1, 1, (*respConn).append},
		"incr":        {2, write, 1, 1, 1, (*respConn).incr},
		"decr":        {2, write, 1, 1, 1, (*respConn).decr},
		"incrby":      {3, write, 1, 1, 1, (*respConn).incrby},
		"decrby":      {3, write, 1, 1, 1, (*respConn).decrby},
		"expire":      {-3, write, 1, 1, 1, expiring("expire", time.Second, false)},
		"pexpire":     {-3, write, 1, 1, 1, expiring("pexpire", time.Millisecond, false)},
		"expireat":    {-3, write, 1, 1, 1, expiring("expireat", time.Second, true)},
		"pexpireat":   {-3, write, 1, 1, 1, expiring("pexpireat", time.Millisecond, true)},
		"persist":     {2, write, 1, 1, 1, (*respConn).persist},
		"ttl":         {2, read, 1, 1, 1, expiry(time.Second, false)},
		"pttl":        {2, read, 1, 1, 1, expiry(time.Millisecond, false)},
		"expiretime":  {2, read, 1, 1, 1, expiry(time.Second, true)},
		"pexpiretime": {2, read, 1, 1, 1, expiry(time.Millisecond, true)},
		"scan":        {-2, read[:1], 0, 0, 0, (*respConn).scan},
	}
}

// command runs one command and appends its reply.
func (c *respConn) command(args [][]byte) {
	name := bytes.ToLower(args[0])
	command, ok := c.s.commands[string(name)]
	if !ok {
		c.error("unknown command '%s'", printable(args[0]))
		return
	}
	if len(args) < command.arity || command.arity > 0 && len(args) != command.arity || len(args) < -command.arity {
		c.error("wrong number of arguments for '%s' command", name)
		return
	}
	command.run(c, args[1:])
}

// error appends an error reply of the kind that Redis gives for a command it cannot make sense of.
func (c *respConn) error(format string, args ...any) {
	c.out = redcon.AppendError(c.out, "ERR "+fmt.Sprintf(format, args...))
}

// failure appends the error of a request. Its first word is the code, in the place where Redis puts its own kinds.
func (c *respConn) failure(err *kv.Error) {
	c.out = redcon.AppendError(c.out, failureText(err))
}

func failureText(err *kv.Error) string {
	if err.Outcome == kv.OutcomeUnknown {
		return fmt.Sprintf("%s %s (outcome unknown)", err.Code, err.Detail)
	}
	return fmt.Sprintf("%s %s", err.Code, err.Detail)
}

func (c *respConn) ok() { c.out = redcon.AppendString(c.out, "OK") }

// printable makes what a client sent fit for an error reply.
func printable(b []byte) string {
	const echoBytesMax = 64
	clean := func(r rune) rune {
		if r < ' ' || r > '~' || r == '\'' {
			return '?'
		}
		return r
	}
	return strings.Map(clean, string(b[:min(len(b), echoBytesMax)]))
}

func (c *respConn) ping(args [][]byte) {
	switch len(args) {
	case 0:
		c.out = redcon.AppendString(c.out, "PONG")
	case 1:
		c.out = redcon.AppendBulk(c.out, args[0])
	default:
		c.error("wrong number of arguments for 'ping' command")
	}
}

func (c *respConn) echo(args [][]byte) { c.out = redcon.AppendBulk(c.out, args[0]) }

func (c *respConn) selectDB(args [][]byte) {
	index, err := strconv.Atoi(string(args[0]))
	switch {
	case err != nil:
		c.error("value is not an integer or out of range")
	case index != 0:
		c.error("DB index is out of range")
	default:
		c.ok()
	}
}

func (c *respConn) quitConn([][]byte) {
	c.ok()
	c.quit = true
}

// hello answers the handshake of clients that ask which protocol is spoken: version 2, and no other.
func (c *respConn) hello(args [][]byte) {
	if len(args) > 0 && string(args[0]) != "2" {
		if _, err := strconv.Atoi(string(args[0])); err != nil {
			c.error("Protocol version is not an integer or out of range")
			return
		}
		c.out = redcon.AppendError(c.out, "NOPROTO unsupported protocol version")
		return
	}
	if len(args) > 1 {
		c.error("HELLO option '%s' is not supported", printable(args[1]))
		return
	}
	facts := []string{"server", "caprock", "version", respVersion, "node", c.s.deps.Backend.Self(), "mode", "standalone", "role", "master"}
	c.out = redcon.AppendArray(c.out, len(facts)+4)
	for _, fact := range facts {
		c.out = redcon.AppendBulkString(c.out, fact)
	}
	c.out = redcon.AppendBulkString(c.out, "proto")
	c.out = redcon.AppendInt(c.out, 2)
	c.out = redcon.AppendBulkString(c.out, "modules")
	c.out = redcon.AppendArray(c.out, 0)
}

// describe answers COMMAND and its subcommands.
func (c *respConn) describe(args [][]byte) {
	names := slices.Sorted(maps.Keys(c.s.commands))
	if len(args) == 0 {
		c.out = redcon.AppendArray(c.out, len(names))
		for _, name := range names {
			c.describeOne(name)
		}
		return
	}
	switch strings.ToLower(string(args[0])) {
	case "count":
		c.out = redcon.AppendInt(c.out, int64(len(names)))
	case "list":
		c.out = redcon.AppendArray(c.out, len(names))
		for _, name := range names {
			c.out = redcon.AppendBulkString(c.out, name)
		}
	case "info":
		c.out = redcon.AppendArray(c.out, len(args)-1)
		for _, name := range args[1:] {
			c.describeOne(strings.ToLower(string(name)))
		}
	case "docs": // redis-cli asks at start, for its hints, and does without
		c.out = redcon.AppendArray(c.out, 0)
	default:
		c.error("unknown subcommand '%s' of COMMAND", printable(args[0]))
	}
}

func (c *respConn) describeOne(name string) {
	command, ok := c.s.commands[name]
	if !ok {
		c.out = redcon.AppendArray(c.out, -1)
		return
	}
	c.out = redcon.AppendArray(c.out, 6)
	c.out = redcon.AppendBulkString(c.out, name)
	c.out = redcon.AppendInt(c.out, int64(command.arity))
	c.out = redcon.AppendArray(c.out, len(command.flags))
	for _, flag := range command.flags {
		c.out = redcon.AppendString(c.out, flag)
	}
	for _, position := range []int{command.first, command.last, command.step} {
		c.out = redcon.AppendInt(c.out, int64(position))
	}
}

// config answers CONFIG GET for the few settings that tools ask about. Nothing can be set.
func (c *respConn) config(args [][]byte) {
	if !strings.EqualFold(string(args[0]), "get") {
		c.error("CONFIG %s is not supported", printable(bytes.ToUpper(args[0])))
		return
	}
	if len(args) < 2 {
		c.error("wrong number of arguments for 'config|get' command")
		return
	}
	settings := [][2]string{
		{"appendonly", "yes"},
		{"databases", "1"},
		{"maxclients", strconv.Itoa(c.s.cfg.ConnectionsMax)},
		{"proto-max-bulk-len", strconv.Itoa(c.s.cfg.BulkBytesMax)},
		{"save", ""},
		{"timeout", strconv.Itoa(int(c.s.cfg.IdleTimeout.Seconds()))},
	}
	var matched []string
	for _, setting := range settings {
		if slices.ContainsFunc(args[1:], func(pattern []byte) bool { return globs(pattern, setting[0]) }) {
			matched = append(matched, setting[0], setting[1])
		}
	}
	c.out = redcon.AppendArray(c.out, len(matched))
	for _, text := range matched {
		c.out = redcon.AppendBulkString(c.out, text)
	}
}

func globs(pattern []byte, name string) bool {
	ok, err := path.Match(strings.ToLower(string(pattern)), name)
	return ok && err == nil
}

// info answers INFO with what clients and tools look at.
func (c *respConn) info(args [][]byte) {
	uptime := int(c.s.deps.WallNow().Sub(c.s.started).Seconds())
	sections := []struct{ name, text string }{
		{"server", fmt.Sprintf("# Server\r\nredis_version:%s\r\nredis_mode:standalone\r\nserver_name:caprock\r\nnode:%s\r\nuptime_in_seconds:%d\r\n",
			respVersion, c.s.deps.Backend.Self(), uptime)},
		{"clients", fmt.Sprintf("# Clients\r\nconnected_clients:%d\r\nmaxclients:%d\r\n", c.s.connected(), c.s.cfg.ConnectionsMax)},
		{"stats", fmt.Sprintf("# Stats\r\ntotal_connections_received:%d\r\ntotal_commands_processed:%d\r\n",
			c.s.accepted.Load(), c.s.executed.Load())},
		{"replication", "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"},
	}
	var texts []string
	for _, section := range sections {
		wanted := func(arg []byte) bool {
			name := strings.ToLower(string(arg))
			return name == section.name || name == "all" || name == "default" || name == "everything"
		}
		if len(args) == 0 || slices.ContainsFunc(args, wanted) {
			texts = append(texts, section.text)
		}
	}
	c.out = redcon.AppendBulkString(c.out, strings.Join(texts, "\r\n"))
}

// levelDefault is what CONSISTENCY calls the choice of leaving the level to the key's policy.
const levelDefault = "default"

// consistency shows or sets the level of the connection's commands.
func (c *respConn) consistency(args [][]byte) {
	switch {
	case len(args) == 0 && c.level == kv.LevelUnset:
		c.out = redcon.AppendBulkString(c.out, levelDefault)
	case len(args) == 0 && c.level == kv.LevelBounded:
		c.out = redcon.AppendBulkString(c.out, c.level.String()+" "+c.staleness.String())
	case len(args) == 0:
		c.out = redcon.AppendBulkString(c.out, c.level.String())
	case len(args) > 2 || len(args) == 2 && !strings.EqualFold(string(args[0]), kv.LevelBounded.String()):
		c.error("wrong number of arguments for 'consistency' command")
	case strings.EqualFold(string(args[0]), levelDefault):
		c.level, c.staleness = kv.LevelUnset, 0
		c.ok()
	default:
		level, err := kv.ParseLevel(strings.ToLower(string(args[0])))
		var staleness time.Duration
		switch {
		case level == kv.LevelCausal:
			err = kv.Errorf(kv.CodeBadRequest, "this protocol has no sessions, which level causal needs")
		case level == kv.LevelBounded && len(args) == 1:
			staleness = kv.MaxStalenessDefault
		case level == kv.LevelBounded:
			var bad *kv.Error
			if staleness, bad = parseStaleness(string(args[1])); bad != nil {
				err = bad
			}
		}
		if err != nil {
			c.failure(kv.AsError(err))
			return
		}
		c.level, c.staleness = level, staleness
		c.ok()
	}
}
