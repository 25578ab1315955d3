package consensus

import (
	"errors"
	"fmt"
	"time"
)

// Config bounds a Store. The defaults are those of the design; the Raft part has been measured together.
type Config struct {
	// TickInterval is the unit of Raft's logical time. Default 100 ms. Shorter ticks detect a dead leader sooner and
	// call a loaded one dead sooner.
	TickInterval time.Duration
	// HeartbeatTicks is how many ticks lie between a leader's heartbeats. Default 2.
	HeartbeatTicks int
	// ElectionTicks is after how many silent ticks, at the least, a follower suspects its leader. Default 10; the
	// actual number is drawn from [ElectionTicks, 2*ElectionTicks).
	ElectionTicks int

	// AppendBytesMax bounds the entries of one append message. Default 1 MiB.
	AppendBytesMax uint64
	// InflightMessagesMax and InflightBytesMax bound the append messages on their way to one follower. Defaults 256
	// and 8 MiB.
	InflightMessagesMax int
	InflightBytesMax    uint64
	// CommittedBytesMax bounds the committed entries taken from one group in one iteration. Default 4 MiB.
	CommittedBytesMax uint64
	// UncommittedBytesMax bounds a leader's uncommitted tail. Default 16 MiB. It is a second fence behind
	// GroupPendingBytesMax and refuses proposals the same way.
	UncommittedBytesMax uint64

	// EntryCommandsMax and EntryBytesMax bound one packed entry. Defaults 512 commands and 256 KiB; a single larger
	// command makes an entry of its own.
	EntryCommandsMax int
	EntryBytesMax    int
	// EntriesPerIterationMax bounds the packed entries that one group proposes in one iteration. Default 8. One is
	// enough unless the same key is written repeatedly: two writes of a key never share an entry.
	EntriesPerIterationMax int
	// CommandBytesMax bounds one command. Default 4 MiB. A larger one is refused before anything is proposed.
	CommandBytesMax int

	// GroupPendingBytesMax and NodePendingBytesMax bound the proposals that have not been answered yet. Defaults
	// 4 MiB and 64 MiB. Beyond them proposals are refused with OVERLOADED.
	GroupPendingBytesMax int64
	NodePendingBytesMax  int64
	// PressureMax is the share of storage's nearest stall threshold from which on writes are refused. Default 0.7.
	PressureMax float64
	// HoldPressure is the share of storage's stall thresholds from which on a replica takes no entries from its leaders either.
	// Default 0.85. It lies above PressureMax, so that leaders refuse writes first.
	HoldPressure float64
	// BarriersMax bounds the read barriers of one group that have not been answered yet. Default 16384.
	BarriersMax int
	// BarrierRoundsMax bounds the confirmation rounds that one group has in flight. Default 4. Barriers that arrive
	// meanwhile share the next round.
	BarrierRoundsMax int

	// InboxBytesMax bounds the peer messages that wait for the loop. Default 64 MiB. Beyond it they are dropped, which
	// Raft takes for a lossy network.
	InboxBytesMax int
	// FrameBytesMax is the size at which a frame to a peer is closed and another one begun. Default 1 MiB.
	FrameBytesMax int
	// WindowBytes is how much of each group's log tail is kept in memory. Default 2 MiB. A follower that lags further
	// behind is served from storage.
	WindowBytes int

	// LogTailBytes is how much of each group's log is kept although no replica needs it. Default 2 MiB. A log is truncated
	// when it has twice as much. A follower that was away for less needs no snapshot.
	LogTailBytes uint64
	// LogBytesMax is the size of a group's log from which on a leader no longer keeps entries for followers that lag.
	// Default 64 MiB. They will need a snapshot.
	LogBytesMax uint64
	// LogHoldTicks is for how long a leader keeps entries, up to LogBytesMax, for a follower that it does not hear of.
	// Default 600, a minute.
	LogHoldTicks int
	// SnapshotSendsMax bounds the snapshots that are sent at a time, over all groups, and SnapshotFetchesMax those that
	// are fetched. Defaults 2 and 2. Each costs both nodes a disk's attention, and the sender the space of what is
	// overwritten meanwhile.
	SnapshotSendsMax   int
	SnapshotFetchesMax int
	// SnapshotChunkBytes is how much of a snapshot one request returns, up to a row more. Default 1 MiB.
	SnapshotChunkBytes int
	// SnapshotBytesPerSecond bounds what this node sends of snapshots. Default 64 MiB. Lower it where snapshots disturb
	// other traffic; a replica that stays behind is what that costs.
	SnapshotBytesPerSecond int64
	// SnapshotIdle is after how long without a sign of it a snapshot under way is given up. Default 10 s.
	SnapshotIdle time.Duration
	// SnapshotPullTimeout bounds one request for a part of a snapshot. Default 5 s.
	SnapshotPullTimeout time.Duration

	// CheckTicks is how often a leader has all replicas of a group hash their state at the same entry and compares. Default
	// 6000, ten minutes; 0 for only when somebody asks. Every replica reads all of its state each time.
	CheckTicks int
	// CheckBytesPerSecond bounds what this node reads for that. Default 32 MiB.
	CheckBytesPerSecond int64

	// FillsMax and FillBytesMax bound the eventual lane's writes that wait for the loop, in number, and that are being
	// synced, in bytes. Defaults 16384 and 64 MiB. Beyond them Commit refuses.
	FillsMax     int
	FillBytesMax int64
	// LateMax is how long a write that does not wait for the disk (CommitAsync) may be without a sync that was asked for. Default 10 ms. It
	// is what a power cut takes of such writes, beside the time that a sync takes; the shorter, the more often the disk is synced for them
	// alone.
	LateMax time.Duration
	// BatchBytesMax is the size at which an iteration's batch takes no more eventual writes. Default 4 MiB.
	BatchBytesMax int
	// SyncsMax bounds the batches that are being synced. Default 256. Beyond it the loop waits for the disk; a leader
	// whose disk hangs for that long loses its groups to nodes whose disks do not.
	SyncsMax int
	// SyncsAheadMax is how many batches may be on their way to the disk while proposals, and eventual writes that would need
	// a batch of their own, are still taken. Default 1: what is written next is filled while one is being synced.
	// What comes meanwhile waits and then shares entries, messages and a batch; without that bound a busy node makes its
	// iterations as small as its clients' operations are apart, and pays for each.
	SyncsAheadMax int

	// CampaignTicks is how often the preferred voter of a group campaigns until the group has a leader, and
	// CampaignTicksMax for how long it does so before it leaves the matter to ordinary election timeouts. Defaults
	// 3 and 300.
	CampaignTicks    int
	CampaignTicksMax int

	// BalanceTicks is how often this node hands one group that it leads back to the group's preferred voter, and
	// BalanceCooldownTicks for how long it leads a group at the least before. Defaults 50 (5 s) and 300 (30 s).
	BalanceTicks         int
	BalanceCooldownTicks int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		TickInterval:           100 * time.Millisecond,
		HeartbeatTicks:         2,
		ElectionTicks:          10,
		AppendBytesMax:         1 << 20,
		InflightMessagesMax:    256,
		InflightBytesMax:       8 << 20,
		CommittedBytesMax:      4 << 20,
		UncommittedBytesMax:    16 << 20,
		EntryCommandsMax:       512,
		EntryBytesMax:          256 << 10,
		EntriesPerIterationMax: 8,
		CommandBytesMax:        4 << 20,
		GroupPendingBytesMax:   4 << 20,
		NodePendingBytesMax:    64 << 20,
		PressureMax:            0.7,
		HoldPressure:           0.85,
		BarriersMax:            16384,
		BarrierRoundsMax:       4,
		InboxBytesMax:          64 << 20,
		FrameBytesMax:          1 << 20,
		WindowBytes:            2 << 20,
		LogTailBytes:           2 << 20,
		LogBytesMax:            64 << 20,
		LogHoldTicks:           600,
		SnapshotSendsMax:       2,
		SnapshotFetchesMax:     2,
		SnapshotChunkBytes:     1 << 20,
		SnapshotBytesPerSecond: 64 << 20,
		SnapshotIdle:           10 * time.Second,
		SnapshotPullTimeout:    5 * time.Second,
		CheckTicks:             6000,
		CheckBytesPerSecond:    32 << 20,
		FillsMax:               16384,
		FillBytesMax:           64 << 20,
		LateMax:                10 * time.Millisecond,
		BatchBytesMax:          4 << 20,
		SyncsMax:               256,
		SyncsAheadMax:          1,
		CampaignTicks:          3,
		CampaignTicksMax:       300,
		BalanceTicks:           50,
		BalanceCooldownTicks:   300,
	}
}

// sizeGrain is how exactly the size of a log is known.
func (c Config) sizeGrain() uint64 { return max(c.LogTailBytes/64, 1) }

// Validate reports the values that make no sense.
func (c Config) Validate() error {
	var errs []error
	positive := func(name string, v float64) {
		if v <= 0 {
			errs = append(errs, fmt.Errorf("consensus: %s must be positive, is %v", name, v))
		}
	}
	positive("tick interval", float64(c.TickInterval))
	positive("heartbeat ticks", float64(c.HeartbeatTicks))
	positive("append bytes", float64(c.AppendBytesMax))
	positive("inflight messages", float64(c.InflightMessagesMax))
	positive("committed bytes", float64(c.CommittedBytesMax))
	positive("uncommitted bytes", float64(c.UncommittedBytesMax))
	positive("entry commands", float64(c.EntryCommandsMax))
	positive("entry bytes", float64(c.EntryBytesMax))
	positive("entries per iteration", float64(c.EntriesPerIterationMax))
	positive("command bytes", float64(c.CommandBytesMax))
	positive("pending bytes of a group", float64(c.GroupPendingBytesMax))
	positive("pressure", c.PressureMax)
	positive("hold pressure", c.HoldPressure)
	positive("barriers", float64(c.BarriersMax))
	positive("barrier rounds", float64(c.BarrierRoundsMax))
	positive("inbox bytes", float64(c.InboxBytesMax))
	positive("frame bytes", float64(c.FrameBytesMax))
	positive("window bytes", float64(c.WindowBytes))
	positive("log tail bytes", float64(c.LogTailBytes))
	positive("log hold ticks", float64(c.LogHoldTicks))
	positive("snapshots sent", float64(c.SnapshotSendsMax))
	positive("snapshots fetched", float64(c.SnapshotFetchesMax))
	positive("snapshot chunk bytes", float64(c.SnapshotChunkBytes))
	positive("snapshot bytes a second", float64(c.SnapshotBytesPerSecond))
	positive("snapshot idle time", float64(c.SnapshotIdle))
	positive("snapshot pull timeout", float64(c.SnapshotPullTimeout))
	positive("check bytes a second", float64(c.CheckBytesPerSecond))
	if c.CheckTicks < 0 {
		errs = append(errs, fmt.Errorf("consensus: check ticks must not be negative, are %d", c.CheckTicks))
	}
	positive("fills", float64(c.FillsMax))
	positive("fill bytes", float64(c.FillBytesMax))
	positive("batch bytes", float64(c.BatchBytesMax))
	positive("syncs", float64(c.SyncsMax))
	positive("syncs ahead", float64(c.SyncsAheadMax))
	positive("campaign ticks", float64(c.CampaignTicks))
	positive("balance ticks", float64(c.BalanceTicks))
	positive("balance cooldown", float64(c.BalanceCooldownTicks))
	if c.ElectionTicks <= c.HeartbeatTicks {
		errs = append(errs, fmt.Errorf("consensus: election ticks (%d) must exceed heartbeat ticks (%d)",
			c.ElectionTicks, c.HeartbeatTicks))
	}
	if c.InflightBytesMax < c.AppendBytesMax {
		errs = append(errs, fmt.Errorf("consensus: inflight bytes (%d) must hold an append message (%d)",
			c.InflightBytesMax, c.AppendBytesMax))
	}
	if pulled := c.SnapshotPullTimeout.Seconds() * float64(c.SnapshotBytesPerSecond); pulled < 2*float64(c.SnapshotChunkBytes*c.SnapshotSendsMax) {
		errs = append(errs, fmt.Errorf("consensus: at %d bytes a second, %d snapshots in chunks of %d bytes take too long for a pull timeout of %v",
			c.SnapshotBytesPerSecond, c.SnapshotSendsMax, c.SnapshotChunkBytes, c.SnapshotPullTimeout))
	}
	if c.LogBytesMax < 2*c.LogTailBytes {
		errs = append(errs, fmt.Errorf("consensus: log bytes (%d) must hold the tail twice (%d)", c.LogBytesMax, c.LogTailBytes))
	}
	if c.NodePendingBytesMax < c.GroupPendingBytesMax {
		errs = append(errs, fmt.Errorf("consensus: pending bytes of the node (%d) must not be below those of a group (%d)",
			c.NodePendingBytesMax, c.GroupPendingBytesMax))
	}
	if c.GroupPendingBytesMax < int64(c.CommandBytesMax) {
		errs = append(errs, fmt.Errorf("consensus: pending bytes of a group (%d) must hold a command (%d)",
			c.GroupPendingBytesMax, c.CommandBytesMax))
	}
	return errors.Join(errs...)
}
