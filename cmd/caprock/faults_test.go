package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/pkg/transport"
)

func TestFaultsReadBackAsTheyWereWritten(t *testing.T) {
	for text, want := range map[string]node.FaultSet{
		`[]`: {},
		`[{"peer":2,"direction":"in","class":"raft","delay":"50ms"},{"disk":"slow","delay":"5ms"},{"clock":"-10m0s"}]`: {
			Network: []transport.Rule{{Peer: 2, Direction: transport.DirectionIn, Class: transport.ClassRaft, Delay: 50 * time.Millisecond}},
			Disk:    storage.DiskFault{Mode: storage.DiskSlow, Delay: 5 * time.Millisecond},
			Clock:   -10 * time.Minute,
		},
		`[{"disk":"full"}]`:     {Disk: storage.DiskFault{Mode: storage.DiskFull}},
		`[{"disk":"low"}]`:      {Disk: storage.DiskFault{Mode: storage.DiskLow}},
		`[{"disk":"error"}]`:    {Disk: storage.DiskFault{Mode: storage.DiskError}},
		`[{"disk":"volatile"}]`: {Disk: storage.DiskFault{Mode: storage.DiskVolatile}},
		`[{"clock":"24h0m0s"}]`: {Clock: 24 * time.Hour},
	} {
		got, err := parseFaults([]byte(text))
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		require.NoError(t, got.Validate(), text)
		back, err := json.Marshal(faultElements(got))
		require.NoError(t, err)
		require.JSONEq(t, text, string(back))
	}
}

// A fault that is misunderstood makes a test pass that proves nothing.
func TestFaultsThatMeanNothingAreRefused(t *testing.T) {
	for _, text := range []string{
		`{}`, `null`, `[1]`, `[null]`, `[{}]`, `[{"cut":true,"bogus":1}]`, `[{"disk":"full","bogus":1}]`, `[{"disk":"full","cut":true}]`,
		`[{"disk":"fast"}]`, `[{"disk":""}]`, `[{"disk":"full","delay":"1s"}]`, `[{"disk":"slow"}]`, `[{"disk":"slow","delay":"5"}]`,
		`[{"disk":"slow","delay":"-1s"}]`, `[{"disk":"slow","delay":"2m"}]`, `[{"clock":"0s"}]`, `[{"clock":10}]`, `[{"clock":"25h"}]`, `[{"clock":"-25h"}]`,
		`[{"clock":"1m","disk":"full"}]`, `[{"disk":"full"},{"disk":"low"}]`, `[{"clock":"1m"},{"clock":"2m"}]`, `[{"clock":"1m","delay":"1s"}]`,
	} {
		set, err := parseFaults([]byte(text))
		if err == nil {
			err = set.Validate()
		}
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), "\n", text)
	}
}
