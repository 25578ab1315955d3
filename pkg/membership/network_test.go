package membership

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"
)

// silence is a network on which every host is down: packets vanish and dials time out.
type silence struct {
	packets chan *memberlist.Packet
	streams chan net.Conn
}

func (silence) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IPv4(10, 0, 0, 1), 7001, nil
}

func (silence) WriteTo([]byte, string) (time.Time, error) { return time.Now(), nil }

func (s silence) PacketCh() <-chan *memberlist.Packet { return s.packets }

func (silence) DialTimeout(_ string, timeout time.Duration) (net.Conn, error) {
	time.Sleep(timeout)
	return nil, errors.New("i/o timeout")
}

func (s silence) StreamCh() <-chan net.Conn { return s.streams }

func (silence) Shutdown() error { return nil }

func TestStoppingDoesNotWaitForEveryHostThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deps := testDeps()
		deps.Transport = silence{make(chan *memberlist.Packet), make(chan net.Conn)}
		deps.KnownAddrs = func() []string { return []string{"10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.0.0.5:1"} }
		m, err := New(testConfig(), deps)
		require.NoError(t, err)
		require.NoError(t, m.SetSelf(Meta{ID: 1}))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		cancel()
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), 3*time.Second)
		time.Sleep(10 * time.Second) // memberlist's last probes
	})
}

func TestNodeListensWhereOthersCanReachIt(t *testing.T) {
	for host, want := range map[string]string{
		"localhost": "127.0.0.1", "": "0.0.0.0", "::": "0.0.0.0", "0.0.0.0": "0.0.0.0", "10.1.2.3": "10.1.2.3", "::1": "::1",
	} {
		got, err := bindIP(context.Background(), host)
		require.NoError(t, err, host)
		require.Equal(t, want, got, host)
	}
	_, err := bindIP(context.Background(), "no.such.host.invalid")
	require.Error(t, err)
}

func TestWhoIsGoneIsGoneWhateverItSaid(t *testing.T) {
	m, err := New(testConfig(), testDeps())
	require.NoError(t, err)
	n := &memberlist.Node{Name: "n2", Meta: []byte(`{"i":2}`)}
	delegate{m}.NotifyJoin(n)
	require.True(t, m.Alive("n2"))
	n.Meta = []byte("of another version")
	delegate{m}.NotifyUpdate(n)
	require.True(t, m.Alive("n2"))
	delegate{m}.NotifyLeave(n)
	require.False(t, m.Alive("n2"))
	known, _ := m.Lookup("n2")
	require.EqualValues(t, 2, known.Meta.ID)
}

func TestMembersOfAnotherClusterAreKeptOut(t *testing.T) {
	m, err := New(testConfig(), testDeps())
	require.NoError(t, err)
	foreign := &memberlist.Node{Name: "n2", Meta: []byte(`{"i":2,"c":9}`)}
	require.NoError(t, delegate{m}.NotifyAlive(foreign), "before the node knows its cluster")
	require.NoError(t, m.SetSelf(Meta{ID: 1, Cluster: 8}))
	require.ErrorContains(t, delegate{m}.NotifyAlive(foreign), "--join")
	require.NoError(t, delegate{m}.NotifyAlive(&memberlist.Node{Meta: []byte(`{"i":2,"c":8}`)}))
	require.NoError(t, delegate{m}.NotifyAlive(&memberlist.Node{Meta: []byte(`{"i":2}`)}), "a node that is joining")
}
