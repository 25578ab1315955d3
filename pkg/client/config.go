package client

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	"github.com/caprockdb/caprock/pkg/kv"
)

// endpointsMax bounds the list of endpoints: each costs a connection.
const endpointsMax = 64

// Config holds the limits and pacing of a client.
type Config struct {
	// Endpoints are the gRPC addresses of one or more nodes, as host:port or as any target that gRPC understands.
	Endpoints []string
	// Timeout bounds every operation that does not choose its own, retries included.
	Timeout time.Duration
	// OutstandingOpsMax and OutstandingBytesMax bound what waits for an answer. Beyond them an operation waits for others to
	// finish before it is accepted. Bytes count keys and values that are sent, not those that are read.
	OutstandingOpsMax   int
	OutstandingBytesMax int
	// BatchOpsMax and BatchBytesMax bound one message. A single larger operation still travels, alone.
	BatchOpsMax   int
	BatchBytesMax int
	// TurnEvery is how long one endpoint gets all operations before it is the next one's turn; 0 changes with every operation. A
	// message costs far more than an operation in it, and scattered over three endpoints operations travel in messages a third as
	// large, both ways: reads then took up to 20 % more CPU in client and cluster. Long turns leave the other nodes' fronts idle.
	TurnEvery time.Duration
	// ConnectTimeout bounds one attempt to reach an endpoint.
	ConnectTimeout time.Duration
	// BackoffMin and BackoffMax bound the pause between attempts to reach an endpoint. It doubles with every failure.
	BackoffMin, BackoffMax time.Duration
	// RetryMin and RetryMax bound the pause before an operation is sent again after an endpoint refused it.
	RetryMin, RetryMax time.Duration
}

// DefaultConfig returns the configuration for the endpoints. One client with these limits saturates a small cluster.
func DefaultConfig(endpoints []string) Config {
	return Config{
		Endpoints:           endpoints,
		Timeout:             kv.RequestTimeout,
		OutstandingOpsMax:   16_384,
		OutstandingBytesMax: 64 << 20,
		BatchOpsMax:         1000,
		BatchBytesMax:       4 << 20,
		TurnEvery:           time.Millisecond,
		ConnectTimeout:      2 * time.Second,
		BackoffMin:          20 * time.Millisecond,
		BackoffMax:          time.Second,
		RetryMin:            5 * time.Millisecond,
		RetryMax:            250 * time.Millisecond,
	}
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("client: "+format, args...))
		}
	}
	check(len(c.Endpoints) >= 1 && len(c.Endpoints) <= endpointsMax, "%d endpoints; there must be 1 to %d", len(c.Endpoints), endpointsMax)
	for i, endpoint := range c.Endpoints {
		check(endpoint != "", "endpoint %d is empty; it must be host:port", i)
	}
	check(c.Timeout > 0 && c.Timeout <= kv.RequestTimeoutMax, "timeout is %s; it must be above 0 and at most %s", c.Timeout, kv.RequestTimeoutMax)
	check(c.OutstandingOpsMax >= 1, "%d outstanding operations; there must be at least 1", c.OutstandingOpsMax)
	check(c.OutstandingBytesMax >= 1, "%d outstanding bytes; there must be at least 1", c.OutstandingBytesMax)
	check(c.BatchOpsMax >= 1 && c.BatchBytesMax >= 1, "batches of %d operations and %d bytes; both must be at least 1", c.BatchOpsMax, c.BatchBytesMax)
	check(c.TurnEvery >= 0, "turns of %s; they must not be negative", c.TurnEvery)
	check(c.ConnectTimeout > 0, "connect timeout is %s; it must be positive", c.ConnectTimeout)
	check(c.BackoffMin > 0 && c.BackoffMin <= c.BackoffMax, "backoff of %s to %s; it must be positive and in order", c.BackoffMin, c.BackoffMax)
	check(c.RetryMin > 0 && c.RetryMin <= c.RetryMax, "retry pause of %s to %s; it must be positive and in order", c.RetryMin, c.RetryMax)
	return errors.Join(errs...)
}

// Deps are what a client needs from outside. The zero value is usable.
type Deps struct {
	// Logger tells of endpoints that are lost and found again; nil discards.
	Logger *slog.Logger
	// Rand spreads pauses; nil seeds one. It belongs to the client from now on.
	Rand *rand.Rand
	// DialOptions are added to the client's own, last, e.g. transport credentials. Without any, connections are not encrypted.
	DialOptions []grpc.DialOption
}
