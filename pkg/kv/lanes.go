package kv

// The phases of a switch of lanes, in their order.
const (
	// SwitchFencing: nodes have yet to say that they act by the switch.
	SwitchFencing = "fence"
	// SwitchHints: hints of the prefix have yet to reach their targets.
	SwitchHints = "hints"
	// SwitchSweeping: what was written eventually is taken into the log.
	SwitchSweeping = "sweep"
)

// LaneSwitch is how far the switch of a prefix between lanes has come.
type LaneSwitch struct {
	Prefix []byte `json:"prefix"`
	// Epoch tells the switches of a prefix apart.
	Epoch uint64 `json:"epoch"`
	// Mode is draining, on the way to strong-only, or opening, on the way from there.
	Mode string `json:"mode"`
	// Phase is one of the constants above; opening is all fence.
	Phase string `json:"phase"`
	// WaitingFor names the nodes that have not said that they act by it. One that is away holds the switch up.
	WaitingFor []string `json:"waiting_for,omitempty"`
	// Partitions is how many there are to sweep, Swept how many of them this pass has done, Passes how many passes were finished:
	// the last one is that which finds nothing.
	Partitions int `json:"partitions,omitempty"`
	Swept      int `json:"swept,omitempty"`
	Passes     int `json:"passes,omitempty"`
	// Hints are those left, Settled the keys that the log has taken in since the present leader of group 0 has driven the switch.
	Hints   int `json:"hints,omitempty"`
	Settled int `json:"settled,omitempty"`
	// Conflicts are the keys with versions beside one another that only a strong write can replace; ConflictKey is one of them.
	Conflicts   int    `json:"conflicts,omitempty"`
	ConflictKey []byte `json:"conflict_key,omitempty"`
	// Problem says why the last step did not succeed; it is made again.
	Problem string `json:"problem,omitempty"`
}
