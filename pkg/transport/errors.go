package transport

import (
	"errors"
	"fmt"

	"github.com/caprockdb/caprock/pkg/kv"
)

var (
	// ErrNotSent is in the chain of every error of a call whose request never reached a link. The error is a *kv.Error
	// whose outcome is "not applied".
	ErrNotSent = errors.New("nothing was sent")
	// ErrLinkBroken is in the chain of the error of a call that was sent and then lost its link. The outcome of a write
	// is unknown.
	ErrLinkBroken = errors.New("the link broke before the answer came")
	// ErrForeignCluster is returned for a batch, or by a handshake, of a node that belongs to another cluster.
	ErrForeignCluster = errors.New("transport: the peer belongs to another cluster")
	// ErrWrongNode is returned when the node at an address is not the one that was expected, or sends under another's id.
	ErrWrongNode = errors.New("transport: the peer is not the node it should be")
	// ErrProtocol is returned when the peer speaks another version of the batch format.
	ErrProtocol = errors.New("transport: the peer speaks another protocol version")
	// ErrMalformed is returned for bytes that no Mux wrote.
	ErrMalformed = errors.New("transport: malformed")
	// errTooManyPeers is returned when there are Config.PeersMax peers already.
	errTooManyPeers = errors.New("transport: too many peers")
	// ErrClosed is returned after Run has ended.
	ErrClosed = errors.New("transport: closed")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// notSent makes the error of a request that never reached a link.
func notSent(code kv.Code, format string, args ...any) *kv.Error {
	return kv.Errorf(code, "%s: %w", fmt.Sprintf(format, args...), ErrNotSent)
}
