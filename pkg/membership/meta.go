package membership

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/hashicorp/memberlist"

	"github.com/caprockdb/caprock/pkg/kv"
)

// Meta is what a node says about itself. Encoded it has at most memberlist.MetaMaxSize (512) bytes.
type Meta struct {
	ID      kv.NodeID `json:"i"`
	HTTP    string    `json:"h"`
	GRPC    string    `json:"g"`
	Gossip  string    `json:"o"`
	RESP    string    `json:"r,omitempty"`
	Zone    string    `json:"z,omitempty"`
	DC      string    `json:"d,omitempty"`
	Cluster uint64    `json:"c,omitempty"`
	// Unfit says that the member should be handed no leadership: it stops, or its disk takes no writes.
	Unfit bool `json:"u,omitempty"`
}

func (m Meta) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("membership: encode: %w", err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("membership: addresses, zone and DC take %d bytes, gossip carries %d: shorten them", len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

// progress is what push-pull exchanges beside the member list: how far a node's map and clock are.
type progress struct {
	epoch kv.Epoch
	hlc   uint64
}

const progressBytes = 16

func (p progress) encode() []byte {
	b := make([]byte, 0, progressBytes)
	b = binary.BigEndian.AppendUint64(b, uint64(p.epoch))
	return binary.BigEndian.AppendUint64(b, p.hlc)
}

func decodeProgress(b []byte) (progress, bool) {
	if len(b) != progressBytes {
		return progress{}, false
	}
	return progress{epoch: kv.Epoch(binary.BigEndian.Uint64(b)), hlc: binary.BigEndian.Uint64(b[8:])}, true
}
