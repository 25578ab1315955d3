package consensus

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// The data of a normal entry is a header and the commands that were packed into it. The header says who proposed the
// entry and under which of its sequence numbers, which is how the proposer recognizes its own entry when Raft hands it
// out with the index and term that it got.
const entryFormat byte = 2

// uptimeMillisMax is the longest uptime that can be said, 292 years.
const uptimeMillisMax = math.MaxInt64 / uint64(time.Millisecond)

// commandOverhead is the most that a command's length takes in an entry.
const commandOverhead = 5

// entryHeader is what precedes the commands.
type entryHeader struct {
	proposer kv.NodeID
	// sequence numbers the proposer's entries since its process started. A restart begins again: nothing is matched
	// across it.
	sequence uint64
	time     causal.HLC
	// uptime is for how long the proposer's process had run, to the millisecond.
	uptime   time.Duration
	commands int
}

func appendEntryHeader(dst []byte, h entryHeader) []byte {
	dst = append(dst, entryFormat)
	dst = binary.AppendUvarint(dst, uint64(h.proposer))
	dst = binary.AppendUvarint(dst, h.sequence)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.time))
	dst = binary.AppendUvarint(dst, uint64(h.uptime.Milliseconds()))
	return binary.AppendUvarint(dst, uint64(h.commands))
}

func readEntryHeader(r *reader) (entryHeader, error) {
	if f := r.byte("entry format"); r.err == nil && f != entryFormat {
		return entryHeader{}, fmt.Errorf("%w: unknown entry format %d", ErrUnreadable, f)
	}
	h := entryHeader{
		proposer: kv.NodeID(r.uvarint("proposer")),
		sequence: r.uvarint("sequence"),
		time:     causal.HLC(r.uint64("time")),
		uptime:   time.Duration(r.bounded("uptime", uptimeMillisMax)) * time.Millisecond,
		commands: r.count("commands"),
	}
	if r.err != nil {
		return entryHeader{}, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return h, nil
}

// decodeEntryData splits an entry's data. The commands alias it.
func decodeEntryData(data []byte) (entryHeader, [][]byte, error) {
	r := reader{b: data}
	h, err := readEntryHeader(&r)
	if err != nil {
		return entryHeader{}, nil, err
	}
	commands := make([][]byte, h.commands)
	for i := range commands {
		commands[i] = r.bytes("command")
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after the commands:")
	}
	if r.err != nil {
		return entryHeader{}, nil, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return h, commands, nil
}

// committed turns a normal entry of a group into what a machine applies. An empty entry, which a new leader appends,
// has no commands and no proposer.
func committed(g kv.GroupID, e *pb.Entry) (Committed, error) {
	c := Committed{Group: g, Pos: causal.Position{Term: e.GetTerm(), Index: e.GetIndex()}}
	if len(e.GetData()) == 0 {
		return c, nil
	}
	h, commands, err := decodeEntryData(e.GetData())
	if err != nil {
		return Committed{}, fmt.Errorf("group %d, entry %d: %w", g, e.GetIndex(), err)
	}
	c.Time, c.Uptime, c.Proposer, c.Commands = h.time, h.uptime, h.proposer, commands
	return c, nil
}

// decodeCommands returns the commands of an entry of a partition's group.
func decodeCommands(c *Committed) ([]command, error) {
	ops := make([]command, len(c.Commands))
	for i, raw := range c.Commands {
		if err := ops[i].decode(raw); err != nil {
			return nil, fmt.Errorf("group %d, entry %d, command %d: %w", c.Group, c.Pos.Index, i, err)
		}
	}
	return ops, nil
}

// confFormat precedes a configuration in the applied row.
const confFormat byte = 1

// encodeConf returns the form of a configuration that replicas keep. Equal configurations have equal bytes, whether they
// come from an entry or with a snapshot: Raft spells out in the latter that it does not leave by itself.
func encodeConf(cs *pb.ConfState) []byte {
	same := pb.ConfState{
		Voters: cs.Voters, Learners: cs.Learners, VotersOutgoing: cs.VotersOutgoing, LearnersNext: cs.LearnersNext,
	}
	if cs.GetAutoLeave() {
		same.AutoLeave = cs.AutoLeave
	}
	return appendConf([]byte{confFormat}, &same)
}

func decodeConfRow(b []byte) (*pb.ConfState, error) {
	r := reader{b: b}
	if f := r.byte("configuration format"); r.err == nil && f != confFormat {
		return nil, fmt.Errorf("%w: unknown configuration format %d", ErrUnreadable, f)
	}
	cs := decodeConf(&r)
	if r.err == nil && len(r.b) > 0 {
		r.fail("trailing bytes after the configuration:")
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, r.err)
	}
	return cs, nil
}
