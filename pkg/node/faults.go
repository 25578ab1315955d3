package node

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
)

// skewMax bounds the injected skew of the clock. Wall clocks are wrong by minutes, or by a time zone.
const skewMax = 24 * time.Hour

// FaultSet is everything that is wrong with a node at once. The zero value is nothing.
type FaultSet struct {
	// Network holds rules for the frames to and from peers.
	Network []transport.Rule
	// Disk is what is wrong with the data directory's filesystem.
	Disk storage.DiskFault
	// Clock is added to the wall clock that feeds the hybrid clock, and to nothing else. At most a day either way.
	Clock time.Duration
}

// Validate reports what is wrong with the set, its network rules aside.
func (s FaultSet) Validate() error {
	if s.Clock < -skewMax || s.Clock > skewMax {
		return fmt.Errorf("clock is %v: between -%v and %v", s.Clock, skewMax, skewMax)
	}
	return s.Disk.Validate()
}

// Injector makes a node of --dev misbehave.
type Injector struct {
	network *transport.Faults
	disk    *storage.FaultFS
	skew    atomic.Int64 // a time.Duration

	mu sync.Mutex // makes Set one step to another Set; nobody waits for anything but the disk while it is held
}

// Set puts the faults in force in place of all others, or changes nothing when one of them is invalid.
func (i *Injector) Set(s FaultSet) error {
	if err := s.Validate(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.network.Set(s.Network); err != nil {
		return err
	}
	i.skew.Store(int64(s.Clock))
	i.disk.Set(s.Disk)
	return nil
}

// Clear removes all faults.
func (i *Injector) Clear() {
	// An empty set is valid.
	_ = i.Set(FaultSet{})
}

// InForce returns the faults in force.
func (i *Injector) InForce() FaultSet {
	i.mu.Lock()
	defer i.mu.Unlock()
	return FaultSet{Network: i.network.Rules(), Disk: i.disk.Fault(), Clock: time.Duration(i.skew.Load())}
}

// wallNow returns the clock with the skew in force added.
func (i *Injector) wallNow(now func() time.Time) func() time.Time {
	return func() time.Time { return now().Add(time.Duration(i.skew.Load())) }
}

// withFaults puts the injector between the node and the world, when the node runs with Dev.
func (n *Node) withFaults(d Deps) Deps {
	if !n.cfg.Dev {
		return d
	}
	n.injector = &Injector{network: transport.NewFaults(n.rand.Uint64()), disk: storage.NewFaultFS(d.FS)}
	d.FS, d.WallNow = n.injector.disk, n.injector.wallNow(d.WallNow)
	return d
}

// networkFaults returns the part of the injector that the transport works by, nil without an injector.
func (n *Node) networkFaults() *transport.Faults {
	if n.injector == nil {
		return nil
	}
	return n.injector.network
}

// Faults returns the fault injector, nil unless the node runs with Dev.
func (n *Node) Faults() *Injector { return n.injector }
