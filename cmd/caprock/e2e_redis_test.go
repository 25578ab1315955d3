package main

import (
	"bufio"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/redcon"
)

// redisClient is a connection that sends a command and reads a reply of one value.
type redisClient struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dialRedis(t *testing.T, addr string) *redisClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return &redisClient{t, conn, bufio.NewReader(conn)}
}

// do returns the reply without its type, "" for a null, and an error with its minus.
func (c *redisClient) do(words ...string) string {
	command := redcon.AppendArray(nil, len(words))
	for _, word := range words {
		command = redcon.AppendBulkString(command, word)
	}
	_, err := c.conn.Write(command)
	if err != nil {
		return "-" + err.Error()
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "-" + err.Error()
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch {
	case line == "$-1":
		return ""
	case line[0] == '$':
		value, err := c.in.ReadString('\n')
		if err != nil {
			return "-" + err.Error()
		}
		return strings.TrimSuffix(value, "\r\n")
	case line[0] == '-':
		return line
	default:
		return line[1:]
	}
}

// startRedis starts three nodes that serve the Redis protocol, and returns where.
func startRedis(t *testing.T) []string {
	t.Helper()
	c := newCluster(t)
	var addrs []string
	for i, port := range freePorts(t, len(c.nodes)) {
		addrs = append(addrs, loopback(port))
		c.nodes[i].args = append(c.nodes[i].args, "--resp", addrs[i])
	}
	c.start(c.nodes...)
	c.waitReady(c.nodes...)
	return addrs
}

func TestRedisCountersOfAllNodesCountEveryIncrement(t *testing.T) {
	addrs := startRedis(t)
	const each = 60
	var clients sync.WaitGroup
	for i := range 2 * len(addrs) {
		c := dialRedis(t, addrs[i%len(addrs)])
		clients.Go(func() {
			for range each {
				if reply := c.do("INCR", "n"); reply[0] == '-' {
					t.Error(reply)
				}
			}
		})
	}
	clients.Wait()
	for _, addr := range addrs {
		require.Equal(t, strconv.Itoa(2*len(addrs)*each), dialRedis(t, addr).do("GET", "n"))
	}
}

// A counter that is counted up all the time expires when it was to: no increment may put that off.
func TestRedisCounterExpiresThoughItIsCountedUp(t *testing.T) {
	addrs := startRedis(t)
	const ttl, late = 2 * time.Second, time.Second
	began := time.Now()
	require.Equal(t, "OK", dialRedis(t, addrs[0]).do("SET", "n", "1000000", "PX", strconv.Itoa(int(ttl.Milliseconds()))))
	latest := time.Since(began) + ttl + late
	var clients sync.WaitGroup
	for _, addr := range addrs {
		c := dialRedis(t, addr)
		clients.Go(func() {
			for {
				asked := time.Since(began)
				n, err := strconv.Atoi(c.do("INCR", "n"))
				switch {
				case err != nil:
					t.Error(err)
					return
				case n < 1_000_000 && time.Since(began) < ttl:
					t.Errorf("the counter is gone after %v", time.Since(began))
					return
				case n < 1_000_000:
					return
				case asked > latest:
					t.Errorf("the counter is still there after %v", asked)
					return
				}
			}
		})
	}
	clients.Wait()
	require.Equal(t, "-1", dialRedis(t, addrs[1]).do("TTL", "n"), "the counter that began anew never expires")
}
