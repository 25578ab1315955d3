package mutant

// Name is the name of a planted bug.
type Name string

// The bugs. What each does is said where it is planted; docs/testing.md lists what catches it.
const (
	NoSync                  Name = "no_sync"
	SendBeforePersist       Name = "send_before_persist"
	VoteNotPersisted        Name = "vote_not_persisted"
	LeaderCountsItself      Name = "leader_counts_itself"
	LocalReadAsStrong       Name = "local_read_as_strong"
	ReadBeforeApply         Name = "read_before_apply"
	ReadWithoutQuorum       Name = "read_without_quorum"
	RepeatedRequestServed   Name = "repeated_request_served"
	QuorumCountedEarly      Name = "quorum_counted_early"
	OwnCopyIgnored          Name = "own_copy_ignored"
	FailureCountedAsAck     Name = "failure_counted_as_ack"
	DotRepeated             Name = "dot_repeated"
	ContextIgnored          Name = "context_ignored"
	MergeOverwrites         Name = "merge_overwrites"
	BlindWriteCovers        Name = "blind_write_covers"
	TombstoneDropped        Name = "tombstone_dropped"
	LateStampAccepted       Name = "late_stamp_accepted"
	WipedDiskVotes          Name = "wiped_disk_votes"
	ApplyReadsClock         Name = "apply_reads_clock"
	SnapshotNotAtomic       Name = "snapshot_not_atomic"
	TruncatedTooEarly       Name = "truncated_too_early"
	NoDedup                 Name = "no_dedup"
	SnapshotWithoutDedup    Name = "snapshot_without_dedup"
	BatchInPart             Name = "batch_in_part"
	ExpiryUnchecked         Name = "expiry_unchecked"
	FollowerReadsAlone      Name = "follower_reads_alone"
	TombstoneCollectedEarly Name = "tombstone_collected_early"
	TreeNotMarked           Name = "tree_not_marked"
	LateDotAccepted         Name = "late_dot_accepted"
	CounterAdds             Name = "counter_adds"
	ExpiredReturned         Name = "expired_returned"
	StateHashedLate         Name = "state_hashed_late"
	QuarantineForgotten     Name = "quarantine_forgotten"
	FirstAnswerWins         Name = "first_answer_wins"
	RepairAfterAnswer       Name = "repair_after_answer"
	ListSkipsPageEdge       Name = "list_skips_page_edge"
	HintDroppedEarly        Name = "hint_dropped_early"
	HintCountedAsAck        Name = "hint_counted_as_ack"
	HintBypassesDropRule    Name = "hint_bypasses_drop_rule"
	HintDroppedSilently     Name = "hint_dropped_silently"
	RepairWritesNothing     Name = "repair_writes_nothing"
	ExchangeSkipsTombstones Name = "exchange_skips_tombstones"
	NoFence                 Name = "no_fence"
	PeekOfOne               Name = "peek_of_one"
	PeekOnce                Name = "peek_once"
	SettleWithoutRevision   Name = "settle_without_revision"
	SettleAtOwnPosition     Name = "settle_at_own_position"
	SettleCoversLosers      Name = "settle_covers_losers"
	RestampNewID            Name = "restamp_new_id"
	CoveredBeforeFence      Name = "covered_before_fence"
	BaseGuessed             Name = "base_guessed"
	PromiseForgotten        Name = "promise_forgotten"
	UnsettledForgotten      Name = "unsettled_forgotten"
	UnsettledReturned       Name = "unsettled_returned"
	TombstoneAboveLive      Name = "tombstone_above_live"
	HealingCounted          Name = "healing_counted"
	HintHolderForgotten     Name = "hint_holder_forgotten"
	SessionUnchecked        Name = "session_unchecked"
	SessionReadForgotten    Name = "session_read_forgotten"
	SessionWriteForgotten   Name = "session_write_forgotten"
	SessionLaneIgnored      Name = "session_lane_ignored"
	SessionWriteBelow       Name = "session_write_below"
	ProofDatedLate          Name = "proof_dated_late"
	ProofUnclean            Name = "proof_unclean"
	ProofNeverOld           Name = "proof_never_old"
	ProofCheckedBefore      Name = "proof_checked_before"
	ProofOutlivesReplica    Name = "proof_outlives_replica"
	HiddenBelowStrong       Name = "hidden_below_strong"
	CounterBaseForgotten    Name = "counter_base_forgotten"
	CoveredForgottenEarly   Name = "covered_forgotten_early"
	PeekSkippedEarly        Name = "peek_skipped_early"
	SweepBeforeAcks         Name = "sweep_before_acks"
	OpenedAtOnce            Name = "opened_at_once"
	LateEpochAccepted       Name = "late_epoch_accepted"
	SentBeforeKept          Name = "sent_before_kept"
)

// All returns every name, in the order in which they are run.
func All() []Name {
	return []Name{
		NoSync, SendBeforePersist, VoteNotPersisted, LeaderCountsItself, LocalReadAsStrong,
		ReadBeforeApply, ReadWithoutQuorum, RepeatedRequestServed, QuorumCountedEarly, OwnCopyIgnored, FailureCountedAsAck, DotRepeated,
		ContextIgnored, MergeOverwrites, BlindWriteCovers, TombstoneDropped, LateStampAccepted, WipedDiskVotes, ApplyReadsClock,
		SnapshotNotAtomic, TruncatedTooEarly,
		NoDedup, SnapshotWithoutDedup, BatchInPart, ExpiryUnchecked, FollowerReadsAlone,
		TombstoneCollectedEarly, TreeNotMarked, LateDotAccepted,
		StateHashedLate, QuarantineForgotten,
		FirstAnswerWins,
		RepairAfterAnswer,
		ListSkipsPageEdge,
		CounterAdds, ExpiredReturned,
		HintDroppedEarly, HintCountedAsAck, HintBypassesDropRule, HintDroppedSilently,
		RepairWritesNothing, ExchangeSkipsTombstones,
		NoFence,
		PeekOfOne,
		PeekOnce,
		SettleWithoutRevision,
		SettleAtOwnPosition,
		SettleCoversLosers,
		RestampNewID,
		CoveredBeforeFence,
		BaseGuessed,
		PromiseForgotten,
		UnsettledForgotten,
		UnsettledReturned,
		TombstoneAboveLive,
		HealingCounted,
		HintHolderForgotten, SessionUnchecked,
		SessionReadForgotten,
		SessionWriteForgotten,
		SessionLaneIgnored,
		SessionWriteBelow,
		ProofDatedLate,
		ProofUnclean,
		ProofNeverOld,
		ProofCheckedBefore,
		ProofOutlivesReplica,
		HiddenBelowStrong,
		CounterBaseForgotten,
		CoveredForgottenEarly,
		PeekSkippedEarly,
		SweepBeforeAcks,
		OpenedAtOnce,
		LateEpochAccepted,
		SentBeforeKept,
	}
}
