package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
)

// ErrForeignDirectory is returned when the data directory belongs to another node or another cluster than the
// configuration names. Starting anyway would put one node's votes into another's mouth.
var ErrForeignDirectory = errors.New("data directory belongs elsewhere")

// Rows of the node's key space.
const (
	rowIdentity = "identity"
	rowCeiling  = "hlc-ceiling"
)

// identity says whom a data directory belongs to. It is written once, before the node does anything else.
type identity struct {
	Name    string       `json:"name"`
	Node    kv.NodeID    `json:"node"`
	Disk    uint64       `json:"disk"`
	Genesis meta.Genesis `json:"genesis"` // ClusterID stays 0 here; group 0 holds it
	// Confirmed is set once the other members agreed that this disk may act under its node id.
	Confirmed bool `json:"confirmed"`
}

// loadIdentity reads the directory's identity, or gives it one.
func loadIdentity(e *storage.Engine, cfg Config, disk uint64) (identity, error) {
	raw, found, err := e.NodeRow(rowIdentity)
	if err != nil {
		return identity{}, err
	}
	g := cfg.genesis()
	if !found {
		i, _ := slices.BinarySearch(g.InitialMembers, cfg.Name)
		id := identity{Name: cfg.Name, Node: kv.NodeID(i + 1), Disk: disk, Genesis: g}
		return id, storeIdentity(e, id)
	}
	var id identity
	if err := json.Unmarshal(raw, &id); err != nil {
		return identity{}, fmt.Errorf("%w: identity row: %w", storage.ErrCorruption, err)
	}
	switch {
	case id.Name != cfg.Name:
		return identity{}, fmt.Errorf("%w: %s holds the data of node %q, not of %q; choose another --data-dir or --name",
			ErrForeignDirectory, cfg.DataDir, id.Name, cfg.Name)
	case !slices.Equal(id.Genesis.InitialMembers, g.InitialMembers):
		return identity{}, fmt.Errorf("%w: %s was created with --initial-members %v, not %v",
			ErrForeignDirectory, cfg.DataDir, id.Genesis.InitialMembers, g.InitialMembers)
	case id.Genesis.Partitions != g.Partitions:
		return identity{}, fmt.Errorf("%w: %s was created with --partitions %d, not %d; the number is fixed for life",
			ErrForeignDirectory, cfg.DataDir, id.Genesis.Partitions, g.Partitions)
	case id.Genesis.Replicas != g.Replicas:
		return identity{}, fmt.Errorf("%w: %s was created with --n %d, not %d",
			ErrForeignDirectory, cfg.DataDir, id.Genesis.Replicas, g.Replicas)
	}
	return id, nil
}

func storeIdentity(e *storage.Engine, id identity) error {
	raw, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	return setNodeRow(e, rowIdentity, raw)
}

// setNodeRow makes one row of the node's key space durable.
func setNodeRow(e *storage.Engine, name string, value []byte) error {
	b := e.NewBatch()
	defer b.Close()
	b.SetNodeRow(name, value)
	return e.ApplySync(b)
}

// newClock opens the hybrid clock above everything that an earlier life of this node may have issued.
func newClock(e *storage.Engine, cfg causal.ClockConfig, wallNow func() time.Time) (*causal.Clock, error) {
	raw, found, err := e.NodeRow(rowCeiling)
	if err != nil {
		return nil, err
	}
	var ceiling causal.HLC
	if found {
		if len(raw) != 8 {
			return nil, fmt.Errorf("%w: clock ceiling has %d bytes", storage.ErrCorruption, len(raw))
		}
		ceiling = causal.HLC(binary.BigEndian.Uint64(raw))
	}
	return causal.NewClock(cfg, causal.ClockDeps{
		WallNow: wallNow,
		Ceiling: ceiling,
		Persist: func(c causal.HLC) error {
			return setNodeRow(e, rowCeiling, binary.BigEndian.AppendUint64(nil, uint64(c)))
		},
	})
}

// confirmIdentity asks the other initial members whether this empty disk may act under its node id, until enough of
// them have said yes: all of them, or a majority counting this node once the rest had probeStraggler to answer. One
// refusal is final. A restart with a confirmed disk asks nobody.
func (n *Node) confirmIdentity(ctx context.Context) error {
	if n.id.Confirmed || mutant.Planted == mutant.WipedDiskVotes {
		return nil
	}
	members := n.id.Genesis.InitialMembers
	agreed := map[kv.NodeID]bool{n.id.Node: true}
	start := time.Now()
	for len(agreed) < len(members) && (len(agreed) < kv.Majority(len(members)) || time.Since(start) < probeStraggler) {
		if err := n.probeOthers(ctx, agreed); err != nil {
			return err
		}
		if len(agreed) == len(members) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(probeInterval):
		}
	}
	n.id.Confirmed = true
	return storeIdentity(n.engine, n.id)
}

const (
	probeInterval  = 50 * time.Millisecond
	probeTimeout   = 500 * time.Millisecond
	probeStraggler = time.Second
)

// probeOthers asks every member that has not agreed yet, all at once.
func (n *Node) probeOthers(ctx context.Context, agreed map[kv.NodeID]bool) error {
	payload, err := json.Marshal(meta.Probe{ID: n.id.Node, Name: n.id.Name, Disk: n.id.Disk, Genesis: n.id.Genesis})
	if err != nil {
		return fmt.Errorf("encode probe: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel() // a refusal has nobody wait for the others
	type answer struct {
		from  kv.NodeID
		reply meta.ProbeReply
		err   error
	}
	answers := make(chan answer, len(n.id.Genesis.InitialMembers))
	asked := 0
	for i := range n.id.Genesis.InitialMembers {
		to := kv.NodeID(i + 1)
		if agreed[to] {
			continue
		}
		asked++
		asking.Go(func() {
			a := answer{from: to}
			var raw []byte
			if raw, a.err = n.mux.Meta(ctx, to, append([]byte{metaProbe}, payload...)); a.err == nil {
				a.err = json.Unmarshal(raw, &a.reply)
			}
			answers <- a
		})
	}
	for range asked {
		a := <-answers // each ends with its context at the latest
		switch {
		case a.err != nil:
			n.log.Debug("a member did not answer the probe", "node", a.from, "error", a.err)
		case a.reply.Refusal != "":
			return fmt.Errorf("%w: node %s refused: %s", ErrForeignDirectory, n.id.Genesis.InitialMembers[a.from-1], a.reply.Refusal)
		default:
			agreed[a.from] = true
		}
	}
	return nil
}
