package consensus

import (
	"sync"

	"github.com/caprockdb/caprock/pkg/storage"
)

// fill is one write of the eventual lane: what it puts into the batch, and who hears whether that became durable. visible, where there is
// one, hears before that when reads of storage find the write.
type fill struct {
	write   func(*storage.Batch)
	visible func()
	done    func(error)
}

// mail is everything that can arrive for the loop between two iterations.
type mail struct {
	messages []inbound
	ops      []*op
	barriers []*barrier
	fills    []fill
	// controls run on the loop before anything else of the iteration.
	controls []func(*loop)
	// synced is the highest sequence number of a batch that is durable; batches become durable in order.
	synced  uint64
	syncErr error
}

// inbox is how other goroutines reach the loop. Posting never blocks; what bounds each kind of mail is said where it is
// posted.
type inbox struct {
	// wake has one slot: a token in it says that there is mail.
	wake chan struct{}

	// mu guards the fields below.
	mu sync.Mutex
	mail
	messageBytes int
	closed       bool
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (i *inbox) notify() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// post changes the mail under the mutex and wakes the loop. It returns false once the loop has ended, or when put did.
func (i *inbox) post(put func(*mail) bool) bool {
	i.mu.Lock()
	ok := !i.closed && put(&i.mail)
	i.mu.Unlock()
	if ok {
		i.notify()
	}
	return ok
}

func (i *inbox) postOp(o *op) bool {
	i.mu.Lock()
	ok := !i.closed
	if ok {
		i.ops = append(i.ops, o)
	}
	i.mu.Unlock()
	if ok {
		i.notify()
	}
	return ok
}

// postMessages takes the messages of one frame, all of them or, when they would exceed bytesMax, none.
func (i *inbox) postMessages(in []inbound, bytesMax int) bool {
	size := 0
	for _, m := range in {
		size += m.bytes
	}
	i.mu.Lock()
	ok := !i.closed && (i.messageBytes+size <= bytesMax || i.messageBytes == 0)
	if ok {
		i.messages = append(i.messages, in...)
		i.messageBytes += size
	}
	i.mu.Unlock()
	if ok {
		i.notify()
	}
	return ok
}

// take moves all mail into m, whose memory the inbox goes on with.
func (i *inbox) take(m *mail) {
	clear(m.messages)
	clear(m.ops)
	clear(m.barriers)
	clear(m.fills)
	clear(m.controls)
	empty := mail{
		messages: m.messages[:0], ops: m.ops[:0], barriers: m.barriers[:0], fills: m.fills[:0],
		controls: m.controls[:0],
	}
	i.mu.Lock()
	empty.synced, empty.syncErr = i.synced, i.syncErr
	*m, i.mail = i.mail, empty
	i.messageBytes = 0
	i.mu.Unlock()
}

// syncs returns how far batches are durable without taking anything.
func (i *inbox) syncs() (uint64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.synced, i.syncErr
}

// close refuses everything from now on and returns what was left.
func (i *inbox) close() mail {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	left := i.mail
	i.mail = mail{}
	return left
}
