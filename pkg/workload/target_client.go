package workload

import (
	"context"

	"github.com/caprockdb/caprock/pkg/client"
	"github.com/caprockdb/caprock/pkg/kv"
)

// ClientTarget sends operations over the Go client's streams.
type ClientTarget struct{ client *client.Client }

// NewClientTarget returns a target that uses the client. Closing it remains the caller's.
func NewClientTarget(c *client.Client) ClientTarget { return ClientTarget{client: c} }

// Do implements Target.
func (t ClientTarget) Do(ctx context.Context, op Op) error {
	_, err := t.client.Do(ctx, kv.Request{Op: op.Kind, Level: op.Level, Key: []byte(op.Key), Value: op.Value}, client.Timeout(op.Timeout))
	return err
}
