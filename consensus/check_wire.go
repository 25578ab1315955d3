package consensus

import (
	"encoding/binary"
	"math"

	"github.com/caprockdb/caprock/pkg/causal"
	"github.com/caprockdb/caprock/pkg/kv"
)

// Requests about checks travel as pulls do, by Puller.Pull and Store.ServePull, and are told apart from them by their first
// byte. It also stands for how a state is hashed: replicas that hash differently, or whose rows are encoded differently,
// must not understand each other.
const checkFormat byte = 0x81

type checkVerb byte

const (
	// checkReport tells the leader what its sender has, and asks what that means. It is repeated until it means something.
	checkReport checkVerb = 1
	// checkStart has the leader begin a check; checkSoon says that there is no hurry.
	checkStart checkVerb = 2
	checkSoon  checkVerb = 3
	// checkAsk asks for the result of the check behind an index.
	checkAsk checkVerb = 4
)

// checkRequest is one request. pos and sum are of a report; pos.Index also of a question.
type checkRequest struct {
	verb  checkVerb
	group kv.GroupID
	pos   causal.Position
	sum   uint64
}

func (c *checkRequest) append(dst []byte) []byte {
	dst = append(dst, checkFormat, byte(c.verb))
	dst = binary.AppendUvarint(dst, uint64(c.group))
	dst = binary.AppendUvarint(dst, c.pos.Term)
	dst = binary.AppendUvarint(dst, c.pos.Index)
	return binary.LittleEndian.AppendUint64(dst, c.sum)
}

func decodeCheckRequest(b []byte) (c checkRequest, err error) {
	r, err := open(b, checkFormat, "a check")
	if err != nil {
		return c, err
	}
	c.verb = checkVerb(r.byte("verb"))
	c.group = kv.GroupID(r.bounded("group", uint64(^kv.GroupID(0))))
	c.pos = causal.Position{Term: r.uvarint("term"), Index: r.uvarint("index")}
	c.sum = r.uint64("sum")
	return c, r.end(c.verb >= checkReport && c.verb <= checkAsk, "a check")
}

// checkVerdict answers a checkRequest.
type checkVerdict byte

const (
	// verdictUndecided: ask again.
	verdictUndecided checkVerdict = 1
	verdictAgrees    checkVerdict = 2
	verdictDiffers   checkVerdict = 3
	// verdictOver: nothing more will be known of that check here.
	verdictOver checkVerdict = 4
	// verdictElsewhere: this node does not lead the group, or does not trust its own replica; ask the leader.
	verdictElsewhere checkVerdict = 5
	// verdictDone answers checkStart and checkSoon, and checkAsk when there is a result.
	verdictDone checkVerdict = 6
)

// checkReply is the answer. result is that of checkAsk; of checkStart it has the index behind which the check will be.
type checkReply struct {
	verdict checkVerdict
	result  CheckResult
}

func (c *checkReply) append(dst []byte) []byte {
	dst = append(dst, checkFormat, byte(c.verdict), byte(0))
	if c.result.Done {
		dst[len(dst)-1] = 1
	}
	dst = binary.AppendUvarint(dst, c.result.Index)
	for _, ids := range [][]kv.NodeID{c.result.Agree, c.result.Differ, c.result.Split, c.result.Silent} {
		dst = binary.AppendUvarint(dst, uint64(len(ids)))
		for _, id := range ids {
			dst = binary.AppendUvarint(dst, uint64(id))
		}
	}
	return dst
}

func decodeCheckReply(b []byte) (c checkReply, err error) {
	r, err := open(b, checkFormat, "a check's answer")
	if err != nil {
		return c, err
	}
	c.verdict = checkVerdict(r.byte("verdict"))
	c.result.Done = r.byte("done") == 1
	c.result.Index = r.uvarint("index")
	for _, ids := range []*[]kv.NodeID{&c.result.Agree, &c.result.Differ, &c.result.Split, &c.result.Silent} {
		for range r.count("nodes") {
			*ids = append(*ids, kv.NodeID(r.bounded("node", math.MaxUint64)))
		}
	}
	if err := r.end(c.verdict >= verdictUndecided && c.verdict <= verdictDone, "a check's answer"); err != nil {
		return checkReply{}, err
	}
	return c, nil
}
