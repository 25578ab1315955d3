package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// load runs Load as `caprock start` does. file is the content of a configuration file, "" for none.
func load(t *testing.T, file string, environ []string, args ...string) (Config, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "caprock.yaml")
		require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
		args = append(args, "--config", path)
	}
	fs := pflag.NewFlagSet("start", pflag.ContinueOnError)
	AddFlags(fs)
	require.NoError(t, fs.Parse(args))
	return Load(fs, environ)
}

func TestNoSettingAtAllIsOneNodeOnPortsOfNodeOne(t *testing.T) {
	c, err := load(t, "", []string{"HOME=/root", "PATH=/bin"})
	require.NoError(t, err)
	require.Equal(t, Default().Resolved(), c)
	require.Equal(t, []string{"n1"}, c.Cluster.InitialMembers)
	require.Equal(t, Cluster{InitialMembers: []string{"n1"}, Join: c.Cluster.Join, Partitions: 16, N: 1, R: 1, W: 1}, c.Cluster)
	require.Equal(t, "127.0.0.1:8081", c.Listen.HTTP)
	require.Equal(t, "127.0.0.1:9001", c.Listen.GRPC)
	require.Equal(t, "127.0.0.1:7001", c.Listen.Gossip)
}

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	file := "partitions: 2\nzone: from-file\ndc: from-file\n"
	environ := []string{"CAPROCK_ZONE=from-env", "CAPROCK_DC=from-env", "CAPROCK_ENDPOINTS=127.0.0.1:9001"}
	c, err := load(t, file, environ, "--dc", "from-flag")
	require.NoError(t, err)
	require.Equal(t, 2, c.Cluster.Partitions)
	require.Equal(t, "from-env", c.Node.Zone)
	require.Equal(t, "from-flag", c.Node.DC)
	require.Equal(t, Default().Log.Format, c.Log.Format)
}

// A flag set to its default value was still set: it wins over the file.
func TestFlagGivenItsDefaultValueStillWins(t *testing.T) {
	c, err := load(t, "partitions: 2\n", nil, "--partitions", "16")
	require.NoError(t, err)
	require.Equal(t, 16, c.Cluster.Partitions)
}

// Every setting can come from every source, and means the same from each.
func TestEverySettingWorksFromEverySource(t *testing.T) {
	values := map[string]string{
		"name": "b", "data-dir": "/data", "http": "127.0.0.1:1001", "grpc": "127.0.0.1:1002", "gossip": "127.0.0.1:1003",
		"resp": "127.0.0.1:1004", "advertise-host": "db.example", "join": "127.0.0.1:1003,10.0.0.2:7001",
		"initial-members": "a,b,c,d,e", "partitions": "7", "n": "5", "r": "1", "w": "5", "zone": "z1", "dc": "d1",
		"cache-size": "64MiB", "memory-limit": "2GiB", "request-timeout": "7s", "log-format": "json", "log-level": "warn", "dev": "true",
		"disk-free-min": "3GiB", "disk-free-percent": "9", "check-interval": "90s", "read-sample-percent": "25",
		"hints-bytes-max": "5MiB", "hints-age-max": "2h", "hints-rate": "1MiB", "repair-interval": "3s", "repair-rate": "2MiB",
		"tombstone-interval": "20s", "tombstone-lag": "2m", "scrub-interval": "4h",
	}
	want := Config{
		Node: Node{Name: "b", DataDir: "/data", Zone: "z1", DC: "d1"},
		Listen: Listen{
			HTTP: "127.0.0.1:1001", GRPC: "127.0.0.1:1002", Gossip: "127.0.0.1:1003", RESP: "127.0.0.1:1004", AdvertiseHost: "db.example",
		},
		Cluster: Cluster{
			Join:           []string{"127.0.0.1:1003", "10.0.0.2:7001"},
			InitialMembers: []string{"a", "b", "c", "d", "e"},
			Partitions:     7, N: 5, R: 1, W: 5,
		},
		Process: Process{
			CacheSize: 64 * MiB, MemoryLimit: 2 * GiB, RequestTimeout: 7 * time.Second, ReadSamplePercent: 25,
			DiskFreeMin: 3 * GiB, DiskFreePercent: 9, CheckInterval: 90 * time.Second, Dev: true,
			Hints: Hints{BytesMax: 5 * MiB, AgeMax: 2 * time.Hour, Rate: MiB},
			Repair: Repair{
				Interval: 3 * time.Second, Rate: 2 * MiB, TombstoneInterval: 20 * time.Second, TombstoneLag: 2 * time.Minute,
				ScrubInterval: 4 * time.Hour,
			},
		},
		Log: Log{Format: "json", Level: slog.LevelWarn},
	}
	var args, environ []string
	var file strings.Builder
	for _, name := range Names() {
		require.Contains(t, values, name, "this test must know every setting")
		args = append(args, "--"+name+"="+values[name])
		environ = append(environ, envName(name)+"="+values[name])
		file.WriteString(name + ": " + values[name] + "\n")
	}
	require.Len(t, values, len(Names()))

	for source, got := range map[string]func() (Config, error){
		"flags":       func() (Config, error) { return load(t, "", nil, args...) },
		"environment": func() (Config, error) { return load(t, "", environ) },
		"file":        func() (Config, error) { return load(t, file.String(), nil) },
	} {
		c, err := got()
		require.NoError(t, err, source)
		require.Equal(t, want, c, source)
	}
}

func TestFileMayWriteListsAsLists(t *testing.T) {
	c, err := load(t, "initial-members: [n1, n2]\njoin:\n  - 127.0.0.1:7001\n  - 127.0.0.1:7002\n", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"n1", "n2"}, c.Cluster.InitialMembers)
	require.Equal(t, []string{"127.0.0.1:7001", "127.0.0.1:7002"}, c.Cluster.Join)
}

func TestFileCanBeNamedByTheEnvironmentAndTheFlagWins(t *testing.T) {
	dir := t.TempDir()
	for _, zone := range []string{"env", "flag"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, zone), []byte("zone: from-"+zone+"\n"), 0o600))
	}
	environ := []string{"CAPROCK_CONFIG=" + filepath.Join(dir, "env")}
	c, err := load(t, "", environ)
	require.NoError(t, err)
	require.Equal(t, "from-env", c.Node.Zone)
	c, err = load(t, "", environ, "--config", filepath.Join(dir, "flag"))
	require.NoError(t, err)
	require.Equal(t, "from-flag", c.Node.Zone)
}

func TestQuorumFollowsFromTheMembers(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want Cluster
	}{
		{[]string{"--initial-members=n1,n2"}, Cluster{N: 2, R: 2, W: 2}},
		{[]string{"--initial-members=n1,n2,n3"}, Cluster{N: 3, R: 2, W: 2}},
		{[]string{"--initial-members=n1,n2,n3,n4,n5"}, Cluster{N: 3, R: 2, W: 2}},
		{[]string{"--initial-members=n1,n2,n3,n4,n5", "--n=5"}, Cluster{N: 5, R: 3, W: 3}},
		{[]string{"--initial-members=n1,n2,n3", "--r=1", "--w=3"}, Cluster{N: 3, R: 1, W: 3}},
	} {
		c, err := load(t, "", nil, tc.args...)
		require.NoError(t, err)
		require.Equal(t, [3]int{tc.want.N, tc.want.R, tc.want.W}, [3]int{c.Cluster.N, c.Cluster.R, c.Cluster.W}, "%v", tc.args)
	}
}

// Each piece of nonsense is one line that names the setting and says what to do.
func TestNonsenseIsOneLineThatSaysWhatToDo(t *testing.T) {
	three := "--initial-members=n1,n2,n3"
	for _, tc := range []struct {
		name string
		file string
		env  []string
		args []string
		want []string
	}{
		{name: "unknown key in the file", file: "partitons: 3\n", want: []string{"caprock.yaml: partitons is not a setting", "the nearest one is partitions"}},
		{name: "nested key in the file", file: "log:\n  format: json\n", want: []string{"log.format is not a setting", "the nearest one is log-format"}},
		{name: "underscores in the file", file: "data_dir: x\n", want: []string{"data_dir is not a setting", "the nearest one is data-dir"}},
		{name: "file naming a file", file: "config: other.yaml\n", want: []string{"config is not a setting"}},
		{name: "key without a value", file: "zone:\n", want: []string{"zone: has no value"}},
		{name: "map as a value", file: "zone: [{a: b}]\n", want: []string{"zone", "is no value for a setting"}},
		{name: "broken file", file: "a: [\n", want: []string{"configuration file", "yaml"}},
		{name: "file is missing", args: []string{"--config=/does/not/exist"}, want: []string{"/does/not/exist", "no such file"}},
		{name: "unknown variable", env: []string{"CAPROCK_DATADIR=x"}, want: []string{"CAPROCK_DATADIR is not a setting", "the nearest one is CAPROCK_DATA_DIR"}},
		{name: "text for a number in the environment", env: []string{"CAPROCK_PARTITIONS=many"}, want: []string{`CAPROCK_PARTITIONS: "many" is not a whole number`}},
		{name: "text for a number in the file", file: "partitions: 1.5\n", want: []string{`caprock.yaml: partitions: "1.5" is not a whole number`}},
		{name: "no duration", env: []string{"CAPROCK_REQUEST_TIMEOUT=5"}, want: []string{`CAPROCK_REQUEST_TIMEOUT: "5" is no duration`}},
		{name: "no bool", env: []string{"CAPROCK_DEV=perhaps"}, want: []string{`CAPROCK_DEV: "perhaps" is neither true nor false`}},
		{name: "decimal unit", file: "cache-size: 256MB\n", want: []string{`"256MB" is no size`, "256MiB"}},
		{name: "log level", env: []string{"CAPROCK_LOG_LEVEL=loud"}, want: []string{`"loud" is no log level`, "debug, info, warn or error"}},
		{name: "log format", args: []string{"--log-format=xml"}, want: []string{"log-format", "text or json"}},
		{name: "n above the members", args: []string{three, "--n=4"}, want: []string{"n is 4", "only 3", "lower n"}},
		{name: "n negative", args: []string{three, "--n=-1"}, want: []string{"n is -1"}},
		{name: "r above n", args: []string{three, "--r=4"}, want: []string{"r is 4", "1 to n, which is 3"}},
		{name: "w above n", args: []string{three, "--n=2", "--w=3"}, want: []string{"w is 3", "1 to n, which is 2"}},
		{name: "w negative", args: []string{three, "--w=-2"}, want: []string{"w is -2"}},
		{name: "later member", args: []string{three, "--name=n4"}, want: []string{"n4 is not one of initial-members", "not supported by this version"}},
		{name: "member twice", args: []string{"--initial-members=n1,n2,n1"}, want: []string{"names n1 twice"}},
		{name: "empty member", args: []string{"--initial-members=n1,,n2"}, want: []string{`initial-members: "" cannot name a node`}},
		{name: "bad name", args: []string{"--name=a/b"}, want: []string{`name: "a/b" cannot name a node`}},
		{name: "name as a path", args: []string{"--name=..", "--initial-members=.."}, want: []string{`name: ".." cannot name a node`}},
		{name: "no data directory", args: []string{"--data-dir="}, want: []string{"data-dir is empty"}},
		{name: "no partitions", args: []string{"--partitions=0"}, want: []string{"partitions is 0: choose 1 to 4096"}},
		{name: "too many partitions", args: []string{"--partitions=4097"}, want: []string{"choose 1 to 4096"}},
		{name: "address without a port", args: []string{"--http=localhost"}, want: []string{"http", "write host:port"}},
		{name: "address with a service name", args: []string{"--grpc=localhost:https"}, want: []string{"grpc", "no usable port"}},
		{name: "address with port 0", args: []string{"--gossip=127.0.0.1:0"}, want: []string{"gossip", "no usable port"}},
		{name: "no HTTP at all", args: []string{"--http="}, want: []string{"http", "write host:port"}},
		{name: "one port twice", args: []string{"--http=127.0.0.1:9001"}, want: []string{"http and grpc both want port 9001"}},
		{name: "one port twice, all interfaces", args: []string{"--http=:9001", "--advertise-host=h"}, want: []string{"both want port 9001"}},
		{name: "all interfaces and no host to advertise", args: []string{"--http=0.0.0.0:8081"}, want: []string{"http listens on all interfaces", "--advertise-host"}},
		{name: "advertised port", args: []string{"--advertise-host=h:1"}, want: []string{"advertise-host", "without a port"}},
		{name: "advertising all interfaces", args: []string{"--advertise-host=::"}, want: []string{"advertise-host", "no host that others can reach"}},
		{name: "join without a port", args: []string{"--join=n2"}, want: []string{"join", "write host:port"}},
		{name: "join without a host", args: []string{"--join=:7001"}, want: []string{"join", "names no host"}},
		{name: "tiny cache", args: []string{"--cache-size=1KiB"}, want: []string{"cache-size is 1KiB", "at least 8MiB"}},
		{name: "tiny memory limit", args: []string{"--memory-limit=1MiB"}, want: []string{"memory-limit is 1MiB", "0 for none"}},
		{name: "cache above the memory", args: []string{"--cache-size=1GiB"}, want: []string{"more than half of memory-limit"}},
		{name: "half the disk", args: []string{"--disk-free-percent=51"}, want: []string{"disk-free-percent is 51", "0 to 50"}},
		{name: "sample above all", args: []string{"--read-sample-percent=101"}, want: []string{"read-sample-percent is 101", "0 to 100"}},
		{name: "negative share of the disk", args: []string{"--disk-free-percent=-1"}, want: []string{"disk-free-percent is -1"}},
		{name: "hints of no age", args: []string{"--hints-age-max=0s"}, want: []string{"hints-age-max is 0s", "more than 0"}},
		{name: "hints that never get through", args: []string{"--hints-rate=1KiB"}, want: []string{"hints-rate is 1KiB", "64KiB"}},
		{name: "hints without room", args: []string{"--hints-bytes-max=0"}, want: []string{"hints-bytes-max", "1B"}},
		{name: "repair without a pause", args: []string{"--repair-interval=0s"}, want: []string{"repair-interval is 0s"}},
		{name: "exchanges slower than a message", args: []string{"--repair-rate=1KiB"}, want: []string{"repair-rate is 1KiB", "1MiB"}},
		{name: "tombstones that go before late writes come", args: []string{"--tombstone-lag=5s"}, want: []string{"tombstone-lag is 5s", "1m0s"}},
		{name: "tombstones at every moment", args: []string{"--tombstone-interval=0s"}, want: []string{"tombstone-interval is 0s"}},
		{name: "scrubs without a pause", args: []string{"--scrub-interval=-1s"}, want: []string{"scrub-interval is -1s"}},
		{name: "checks without a pause", args: []string{"--check-interval=1ms"}, want: []string{"check-interval is 1ms", "at least 1s"}},
		{name: "no time", args: []string{"--request-timeout=0s"}, want: []string{"request-timeout is 0s"}},
		{name: "too much time", args: []string{"--request-timeout=61s"}, want: []string{"at most 1m0s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.file, tc.env, tc.args...)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\n")
			for _, want := range tc.want {
				require.Contains(t, err.Error(), want)
			}
		})
	}
}

func TestAddressesOnDifferentInterfacesMayShareAPort(t *testing.T) {
	_, err := load(t, "", nil, "--http=127.0.0.1:9000", "--grpc=127.0.0.2:9000", "--gossip=[::1]:9000")
	require.NoError(t, err)
}

func TestAdvertisedAddressKeepsThePort(t *testing.T) {
	l := Listen{AdvertiseHost: "n1"}
	require.Equal(t, "n1:8081", l.Advertise("0.0.0.0:8081"))
	require.Equal(t, "[fd00::1]:8081", Listen{AdvertiseHost: "fd00::1"}.Advertise(":8081"))
	require.Equal(t, "10.0.0.1:8081", Listen{}.Advertise("10.0.0.1:8081"))
	require.Empty(t, l.Advertise(""), "what is off is not advertised")
}

func TestSizesReadBackAsTheyArePrinted(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "0B": 0, "17": 17, "17B": 17, "64 KiB": 64 * KiB, "256MiB": 256 * MiB, "1GiB": GiB, "2TiB": 2 * TiB} {
		got, err := ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "-1", "1.5GiB", "1GB", "MiB", "9999999TiB", "0x10"} {
		_, err := ParseSize(text)
		require.Error(t, err, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Int64Min(0).Draw(t, "size"))
		back, err := ParseSize(s.String())
		if err != nil || back != s {
			t.Fatalf("%d prints as %s and reads back as %d, %v", int64(s), s, int64(back), err)
		}
	})
}

func TestResolvedSharesNothingWithItsOrigin(t *testing.T) {
	c := Default()
	c.Cluster.InitialMembers = []string{"n1", "n2"}
	r := c.Resolved()
	r.Cluster.InitialMembers[0] = "changed"
	require.Equal(t, "n1", c.Cluster.InitialMembers[0])
	require.Zero(t, c.Cluster.N)
}

// TestPartsOfTheMemoryLimitFitIntoIt adds up what a node needs at the worst beside garbage: a limit that they fill leaves the
// collector no room, and the process does little else than collect.
func TestPartsOfTheMemoryLimitFitIntoIt(t *testing.T) {
	for _, limit := range []Size{memoryLimitMin, memoryLimitDefault, GiB, 16 * GiB} {
		p := Default().Process
		p.MemoryLimit = limit
		require.LessOrEqual(t, p.CacheSize+4*p.MemtableSize(), limit*9/10, "%v", limit)
	}
	require.Equal(t, 64*MiB, Process{}.MemtableSize(), "no limit")
	require.Equal(t, 64*MiB, Process{MemoryLimit: GiB}.MemtableSize())
	require.Less(t, int64(Default().Process.MemoryLimit), int64(460_000_000), "a process below 500 MB with what the collector overshoots")
}
