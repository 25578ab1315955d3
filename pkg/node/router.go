package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/caprockdb/caprock/consensus"
	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/meta"
	"github.com/caprockdb/caprock/pkg/mutant"
	"github.com/caprockdb/caprock/pkg/storage"
	"github.com/caprockdb/caprock/quorum"
)

const (
	// hopsMax bounds how often a request is handed on: once from a node that owns nothing of the key to one that
	// does, and once from there to the leader.
	hopsMax = 2
	// retryInterval is the pause before a request that found no leader, or a node behind, is routed anew.
	retryInterval = 25 * time.Millisecond
)

// route is a request with everything the router has worked out about it.
type route struct {
	request   *kv.Request
	state     *meta.State
	partition kv.PartitionID
	owners    []kv.NodeID
	resolvers *quorum.Registry
	resolver  quorum.Resolver // eventual and local only, as are the next two
	repair    quorum.RepairMode
	quorum    kv.Quorum
	// beginBy is when a strong request that has a fallback is not offered again; zero: its deadline alone counts.
	beginBy time.Time
}

// Execute serves one request that a user sent to this node. The error is a *kv.Error.
func (n *Node) Execute(ctx context.Context, r *kv.Request) (kv.Response, error) {
	if n.draining.Load() || !n.gate.enter() {
		return kv.Response{}, kv.Errorf(kv.CodeNotReady, "node %s is stopping", n.cfg.Name)
	}
	defer n.gate.leave()
	if r.Op.IsWrite() {
		if err := n.refuseWrite(); err != nil {
			return kv.Response{}, kv.AsError(err)
		}
	}
	cost := costOf(r)
	if err := n.admission.enter(cost); err != nil {
		n.metrics.refused.Inc()
		return kv.Response{}, err
	}
	defer n.admission.leave(cost)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.cfg.RequestTimeout)
		defer cancel()
	}
	res, err := n.route(ctx, r)
	if err != nil {
		return kv.Response{}, kv.AsError(err)
	}
	return res, nil
}

// route plans the request and runs it on its lane.
func (n *Node) route(ctx context.Context, r *kv.Request) (kv.Response, error) {
	rt, err := n.plan(r)
	if err != nil {
		return kv.Response{}, err
	}
	if rt.request.Fallback != kv.LevelUnset {
		return n.degradable(ctx, rt)
	}
	return n.run(ctx, rt)
}

// run runs a planned request on its lane.
func (n *Node) run(ctx context.Context, rt route) (res kv.Response, err error) {
	if rt.request.Level != kv.LevelStrong {
		if rt.request.Op == kv.OpList && !rt.request.List.Single {
			return n.list(ctx, rt.state, rt.request)
		}
		if rt.request.Level == kv.LevelBounded {
			res, err = n.routeBounded(ctx, rt)
			if rt.request.Hops == 0 {
				n.metrics.proven(rt.request.Op, err)
			}
			return res, err
		}
		return n.routeEventual(ctx, rt)
	}
	if rt.request.Op == kv.OpList && !rt.request.List.Single {
		res, err = n.list(ctx, rt.state, rt.request)
	} else {
		res, err = n.routeStrong(ctx, rt)
	}
	if rt.request.Hops == 0 {
		n.metrics.proven(rt.request.Op, err)
		if err == nil && len(rt.request.Session) > 0 {
			res.Session, err = rt.addToSession(&res)
		}
	}
	return res, err
}

// plan resolves the level and the quorum by the key's policy, checks the request and finds the key's home.
func (n *Node) plan(r *kv.Request) (route, error) {
	st := n.machine.State()
	policed := r.Key
	if r.Op == kv.OpList && r.List != nil {
		policed = r.List.Prefix
	}
	policy, _ := st.PolicyFor(policed)
	if r.Level == kv.LevelUnset {
		// A copy: the caller may offer the request again, when another policy may be in force.
		c := *r
		c.Level = policy.LevelFor(n.cfg.DefaultLevel)
		r = &c
	}
	r = withTTL(st, r, policy.TTL)
	if err := r.Validate(n.cfg.Limits); err != nil {
		return route{}, err
	}
	if r.Level == kv.LevelBounded && r.MaxStaleness == 0 {
		c := *r
		c.MaxStaleness = kv.MaxStalenessDefault
		r = &c
	}
	if err := checkSession(r); err != nil {
		return route{}, err
	}
	if err := admit(st, &policy, r); err != nil {
		n.metrics.fenced.Inc()
		return route{}, err
	}
	if r.Level != kv.LevelStrong && !r.ID.IsZero() {
		c := *r
		c.ID = kv.OpID{}
		r = &c
	}
	if !st.Ready() {
		return route{}, kv.Errorf(kv.CodeNotReady, "the cluster has no partition map yet")
	}
	rt := route{request: r, state: st, partition: st.Map.PartitionOf(r.Key)}
	if r.Op == kv.OpList && r.List.Single {
		if rt.partition = r.List.Partition; int(rt.partition) >= len(st.Map.Partitions) {
			return route{}, kv.Errorf(kv.CodeBadRequest, "there is no partition %d", rt.partition)
		}
	}
	if r.Op == kv.OpBatch {
		if err := rt.together(); err != nil {
			return route{}, err
		}
	}
	rt.owners = st.Map.Owners(rt.partition)
	if r.Level == kv.LevelStrong {
		return rt, nil
	}
	err := n.planEventual(&rt, &policy)
	return rt, err
}

// routeStrong takes the request to the partition's leader, and tries again while nothing can have been applied: until
// the deadline for a request of this node's own user, once for one that another node forwarded. It gives up before when
// no majority can be reached.
func (n *Node) routeStrong(ctx context.Context, rt route) (kv.Response, error) {
	var f failing
	for attempt := 0; ; attempt++ {
		res, err := n.tryStrong(ctx, rt, attempt)
		if err == nil || !harmless(rt.request, err) {
			return res, err
		}
		if attempt == 0 {
			f.since = time.Now()
		}
		if lost := n.lost(ctx, &rt, &f, err); lost != nil {
			return kv.Response{}, lost
		}
		if rt.request.Hops > 0 || !rt.beginBy.IsZero() && time.Now().After(rt.beginBy) {
			return kv.Response{}, err // who forwarded it tries again
		}
		select {
		case <-ctx.Done():
			return kv.Response{}, err
		case <-n.gate.closing.Done():
			return kv.Response{}, err
		case <-time.After(retryInterval):
		}
	}
}

// mayRetry reports whether this node should offer the request again.
func (n *Node) mayRetry(r *kv.Request, err error) bool {
	return r.Hops == 0 && harmless(r, err) // otherwise who forwarded it retries
}

// harmless reports whether offering the request again can do no harm and may help. Refused load is not offered again at once.
func harmless(r *kv.Request, err error) bool {
	e := kv.AsError(err)
	return e.Code != kv.CodeOverloaded && e.Retryable && (e.Outcome == kv.OutcomeNotApplied || !r.Op.IsWrite())
}

// tryStrong makes one attempt: here when this node leads, else at the leader, else at an owner that may know it.
func (n *Node) tryStrong(ctx context.Context, rt route, attempt int) (kv.Response, error) {
	group := rt.partition.Group()
	owner := slices.Contains(rt.owners, n.id.Node)
	var target kv.NodeID
	if owner {
		target = n.strong.Leader(group)
		if rt.request.Op == kv.OpGet && (target != kv.NoNode || mutant.Planted == mutant.LocalReadAsStrong) {
			target = n.id.Node // any replica can answer, once the leader has said how far it must have applied
		}
	} else {
		target = n.pickOwner(rt.owners, attempt)
	}
	switch {
	case target == n.id.Node:
		return n.serveStrong(ctx, rt)
	case target == kv.NoNode:
		return kv.Response{}, kv.Errorf(kv.CodeNoLeader, "partition %d has no leader at present", rt.partition)
	case owner && n.silent(group):
		// It would be sent into the void, and nobody could say what became of it.
		return kv.Response{}, kv.Errorf(kv.CodeNoLeader, "nothing was heard of node %s, the leader of partition %d, for a while", n.NodeName(target), rt.partition)
	case rt.request.Hops >= hopsMax:
		err := kv.Errorf(kv.CodeNoLeader, "the request was forwarded %d times without finding the leader of partition %d", rt.request.Hops, rt.partition)
		err.Leader = n.NodeName(target)
		return kv.Response{}, err
	case rt.request.Op == kv.OpGet:
		return n.forwardRead(ctx, target, rt.request)
	}
	return n.forward(ctx, target, rt.request)
}

// silent reports whether this node's replica of the group is out of touch with a majority.
func (n *Node) silent(g kv.GroupID) bool {
	silence, replica := n.strong.Silence(g)
	return replica && silence >= n.strong.SilenceMax()
}

// forward hands the request to another node.
func (n *Node) forward(ctx context.Context, to kv.NodeID, r *kv.Request) (kv.Response, error) {
	c := *r
	c.Hops++
	c.Fallback = kv.LevelUnset // which this node sees to
	if c.Level == kv.LevelStrong {
		c.Session = nil // so is that
	}
	n.metrics.forwarded.Inc()
	res, err := n.mux.Forward(ctx, to, &c)
	if err != nil {
		err = forwardError(err, r, n.NodeName(to))
		if kv.AsError(err).Code == kv.CodeNotReady {
			n.avoided.add(to)
		}
		return kv.Response{}, err
	}
	return res, nil
}

// forwardError gives an error of the transport the code and the outcome that a user should see. An error of the other
// node arrives whole and is passed on.
func forwardError(err error, r *kv.Request, to string) error {
	if _, ok := errors.AsType[*kv.Error](err); ok {
		e := *kv.AsError(err)
		if r.Op == kv.OpGet || r.Op == kv.OpList {
			e.Outcome = kv.OutcomeNotApplied
		}
		return &e
	}
	e := kv.Errorf(kv.CodeQuorumUnavailable, "node %s could not be asked: %w", to, err)
	if r.Op.IsWrite() {
		e.Outcome = kv.OutcomeUnknown
	}
	return e
}

// pickOwner chooses an owner that is believed alive, another one for each attempt, and one that refused a request a moment
// ago only if there is no other. NoNode when there is none.
func (n *Node) pickOwner(owners []kv.NodeID, attempt int) kv.NodeID {
	last := kv.NoNode
	for i := range owners {
		o := owners[(i+attempt)%len(owners)]
		switch {
		case o == n.id.Node || !n.alive(o):
		case !n.avoided.has(o):
			return o
		case last == kv.NoNode:
			last = o
		}
	}
	return last
}

// serveStrong runs the request on this node, which leads the partition as far as it knows.
func (n *Node) serveStrong(ctx context.Context, rt route) (kv.Response, error) {
	r := rt.request
	switch r.Op {
	case kv.OpGet:
		return n.strongGet(ctx, rt)
	case kv.OpInquire:
		return n.inquire(ctx, rt)
	case kv.OpBatch:
		return n.batch(ctx, rt)
	case kv.OpList:
		return n.listHere(ctx, rt)
	default:
	}
	reply, err := n.guarded(ctx, &rt, consensus.WriteOp{
		Key: r.Key, Value: r.Value, Delete: r.Op == kv.OpDelete, Condition: r.Condition, ID: r.ID, TTL: r.TTL,
	})
	if err == nil {
		err = refusal(reply)
	}
	if err != nil {
		return kv.Response{}, err
	}
	if !reply.Applied {
		e := mismatch(reply.Revision, r.Condition)
		e.CurrentVersion = reply.Revision
		return kv.Response{}, e
	}
	return kv.Response{
		Found: reply.Found, Settled: true, Level: kv.LevelStrong, Outcome: kv.OutcomeApplied,
		Acks: reply.Acks, Version: reply.Revision, Context: n.strongContext(r.Key, reply.Revision),
		Timestamp: reply.Stamp.Time.Time(), Coordinator: n.id.Node, Replicas: n.strongReplicas(rt),
	}, nil
}

func (n *Node) strongGet(ctx context.Context, rt route) (kv.Response, error) {
	// Before the barrier: a replica that is rebuilt behind it may be back at an earlier entry than the barrier waited for.
	sound, _ := n.strong.Sound(rt.partition.Group())
	closed := n.closedAt(rt.request.Key)
	peeked, err := n.readBarrier(ctx, rt.partition.Group())
	if closed != 0 && n.closedAt(rt.request.Key) == closed {
		peeked.Clean = true
	}
	if mutant.Planted == mutant.LocalReadAsStrong {
		peeked.Clean = true
	}
	switch leads := n.strong.Leader(rt.partition.Group()) == n.id.Node; {
	case errors.Is(err, errBehind):
		return n.handToLeader(ctx, rt)
	case err != nil && mutant.Planted != mutant.LocalReadAsStrong:
		return kv.Response{}, err
	case !peeked.Clean && !leads:
		return n.handToLeader(ctx, rt) // it alone can have the log take in what there is beside the state
	}
	st, err := n.settled(ctx, &rt, rt.request.Key, peeked, false)
	if err == nil && st.beside != nil {
		return n.strongBeside(rt, &st)
	}
	s, found := st.state.Strong, st.state.HasStrong
	if errors.Is(n.vouch(rt.partition.Group(), sound, err), consensus.ErrQuarantined) {
		return n.handToLeader(ctx, rt)
	}
	replicas := n.strongReplicas(rt)
	if err == nil && s.Expiry != 0 {
		if replicas[0] != n.id.Node {
			// Whether a value has expired is for the leader to say: it alone can have the log say so.
			return n.handToLeader(ctx, rt)
		}
		s, found, err = n.unexpired(ctx, rt.partition.Group(), rt.request.Key, s)
		if err == nil {
			err = n.vouch(rt.partition.Group(), sound, nil)
		}
	}
	if err != nil {
		return kv.Response{}, err
	}
	res := kv.Response{
		Settled: true, Level: kv.LevelStrong, Context: n.strongContext(rt.request.Key, s.Revision),
		Acks: kv.Majority(len(rt.owners)), Coordinator: n.id.Node, Replicas: replicas,
	}
	if found && !s.Deleted {
		res.Found, res.Value, res.Version, res.Timestamp = true, s.Value, s.Revision, s.Stamp.Time.Time()
		if s.Expiry != 0 {
			res.Expires = s.Expiry.Time()
		}
	}
	return res, nil
}

// handToLeader has the leader answer a read that this replica should not.
func (n *Node) handToLeader(ctx context.Context, rt route) (kv.Response, error) {
	leader := n.strong.Leader(rt.partition.Group())
	if leader == kv.NoNode || leader == n.id.Node || rt.request.Hops >= hopsMax {
		return kv.Response{}, kv.Errorf(kv.CodeNoLeader, "partition %d has no leader at present that could answer", rt.partition)
	}
	return n.forwardRead(ctx, leader, rt.request)
}

// followerPatience is how long a follower's own replica may take to catch up with a read, before the leader answers it.
const followerPatience = 250 * time.Millisecond

var errBehind = errors.New("this replica lags behind its leader")

// readBarrier is the strong lane's. On a follower that does not get there in time, because it has just come back say, it
// returns errBehind while the leader can still be asked.
func (n *Node) readBarrier(ctx context.Context, g kv.GroupID) (consensus.Peeked, error) {
	leader := n.strong.Leader(g)
	if _, sound := n.strong.Sound(g); !sound {
		return consensus.Peeked{}, errBehind
	}
	if leader == n.id.Node || leader == kv.NoNode {
		return n.strong.Peek(ctx, g, false)
	}
	if mutant.Planted == mutant.FollowerReadsAlone {
		return consensus.Peeked{Clean: true}, nil
	}
	patient, cancel := context.WithTimeout(ctx, followerPatience)
	defer cancel()
	peeked, err := n.strong.Peek(patient, g, false)
	leader = n.strong.Leader(g)
	if err != nil && patient.Err() != nil && ctx.Err() == nil && leader != n.id.Node && leader != kv.NoNode {
		return consensus.Peeked{}, errBehind
	}
	return peeked, err
}

// strongReplicas names who vouches for a strong answer: the leader first, then this node if it answers in its place.
// Which of the others made up the majority is known to Raft only.
func (n *Node) strongReplicas(rt route) []kv.NodeID {
	leader := n.strong.Leader(rt.partition.Group())
	if leader == kv.NoNode || leader == n.id.Node {
		return []kv.NodeID{n.id.Node}
	}
	return []kv.NodeID{leader, n.id.Node}
}

// vouch returns why what was read of S must not be answered with: it could not be read, or the replica was found to be
// wrong since the generation was asked for. Either has the replica rebuilt, and the request may be offered again.
func (n *Node) vouch(g kv.GroupID, generation uint64, err error) error {
	if errors.Is(err, storage.ErrCorruption) {
		if st, _ := n.strong.Status(g); len(st.Voters) > 1 {
			n.strong.Distrust(g, err)
			return kv.Errorf(kv.CodeNotReady, "%w: %w", consensus.ErrQuarantined, err)
		}
	}
	if now, ok := n.strong.Sound(g); err == nil && (!ok || now != generation) {
		err = kv.Errorf(kv.CodeNotReady, "%w", consensus.ErrQuarantined)
	}
	return err
}

// routeEventual coordinates here when this node is a replica of the key, else at one that is: one hop. A node whose
// hybrid clock is far ahead of its wall clock, because the latter was wrong and has been set right, leaves writes to
// another replica: what it stamped, the others would refuse.
func (n *Node) routeEventual(ctx context.Context, rt route) (kv.Response, error) {
	if n.coordinates(&rt) {
		return n.coordinator.Do(ctx, n.call(&rt))
	}
	if rt.request.Hops >= hopsMax {
		return kv.Response{}, errHops(rt.request)
	}
	err := errNoOwner(&rt)
	owners := n.nearestFirst(rt.owners)
	for attempt := range owners {
		to := n.pickOwner(owners, attempt)
		if to == kv.NoNode {
			break
		}
		var res kv.Response
		if res, err = n.forward(ctx, to, rt.request); err == nil || !n.mayRetry(rt.request, err) || ctx.Err() != nil {
			return res, err
		}
	}
	return kv.Response{}, err
}
