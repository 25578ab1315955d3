package transport

import (
	"bytes"

	"github.com/caprockdb/caprock/quorum"
)

// Inspector is told what a batch carries. A nil field means that nobody wants to know. What it is given aliases the
// batch, which the watcher must not keep.
type Inspector struct {
	// Raft is given frames of the strong lane.
	Raft func(frame []byte)
	// Write is given a write of the eventual lane, repairs and hints that are handed over included, with the id that its reply
	// will have. What is handed over has ids of its own, and its replies are not shown.
	Write func(id uint64, w quorum.WriteRequest)
	// Reply is given a reply that succeeded, whatever it answers.
	Reply func(id uint64, body []byte)
}

// Inspect shows what is in a batch that was handed to a Wire. It is for simulators that check what nodes say to each other.
func Inspect(batch []byte, by Inspector) error {
	_, rest, err := decodeHeader(batch)
	if err != nil {
		return err
	}
	for len(rest) > 0 {
		var f frame
		if f, rest, err = nextFrame(rest); err != nil {
			return err
		}
		if err := by.inspect(f); err != nil {
			return err
		}
	}
	return nil
}

func (by Inspector) inspect(f frame) error {
	switch {
	case f.kind == kindRaft && by.Raft != nil:
		by.Raft(f.payload)
	case (f.kind == kindWrite || f.kind == kindHandOver) && by.Write != nil:
		epoch, _, body, err := decodeRequestPrefix(f.payload)
		if err != nil {
			return err
		}
		w, err := decodeWrite(epoch, bytes.Clone(body))
		if err != nil {
			return err
		}
		by.Write(f.id, w)
	case f.kind == kindReply && by.Reply != nil:
		body, answer, err := splitReply(f.payload)
		if err != nil {
			return err
		}
		if answer == nil {
			by.Reply(f.id, body)
		}
	}
	return nil
}

// DecodeWriteReply reads the body of a reply to a write. The watcher of a wire knows by its id which request it answers.
func DecodeWriteReply(body []byte) (quorum.WriteReply, error) { return decodeWriteReply(body) }
