package model

// Rules are the rules of the protocol that can be switched off to see what they are for. AllRules is the protocol.
type Rules struct {
	// NodeBreaksTies: stamps with equal base and clock reading are ordered by node. Otherwise they are equal.
	NodeBreaksTies bool
	// PutIsOneEntry: a strong put covers every lower stamp by its own position. Otherwise its first entry writes the
	// value, and a second one covers what a Peek found afterwards.
	PutIsOneEntry bool
	// AppendedIsFenced: the fence is raised by entries appended and not applied yet. Otherwise only by what was applied,
	// and a put is answered once a majority has applied it, except from a dedup row.
	AppendedIsFenced bool
	// PeekPromises: a replica that answers the Peek of a compare-and-set refuses eventual writes up to h from then on.
	PeekPromises bool
	// PromiseSurvives: after a restart the promise is the clock's ceiling. Otherwise it is forgotten.
	PromiseSurvives bool
	// RestampKeepsID: a write that is stamped anew keeps its write id. Otherwise each attempt is a write of its own.
	RestampKeepsID bool
	// PeekAgain: a version is settled only if it was known before the last round of Peek began.
	PeekAgain bool
	// ContextCoversDots: a context covers attempts. Otherwise it covers writes, later attempts included.
	ContextCoversDots bool
	// PeekMajority: a majority answers a Peek. Otherwise one replica does.
	PeekMajority bool
	// SettleBeforeAnswer: an unsettled version is settled before it is returned.
	SettleBeforeAnswer bool
	// SettleExpectsRevision: a Settle does nothing unless S has the revision that its proposer saw.
	SettleExpectsRevision bool
	// SettleKeepsStamp: a Settle writes the winner's stamp. Otherwise its entry's own position.
	SettleKeepsStamp bool
	// SettleCoversWinner: a Settle covers the winner's write id only. Otherwise all that was found.
	SettleCoversWinner bool
	// BaseIsAppended: the base of a stamp is an entry that was really appended. Otherwise the position after it.
	BaseIsAppended bool
	// BaseTermIsCommitted: an entry of that entry's term is known to be committed where it is taken from. Otherwise an
	// election that removes the entry leaves a base above entries of lower terms that are yet to be committed.
	BaseTermIsCommitted bool
	// FenceBeforeCovered: a write below the fence is refused even when the held context covers its dot. Otherwise the
	// context is asked first.
	FenceBeforeCovered bool
	// HigherBeforeCovered: a write below a held version's stamp is refused even when the held context covers its dot, which
	// a repair may have brought. Otherwise the context is asked first, and only then the held versions.
	HigherBeforeCovered bool
	// DropsCarryRevision: a set from which S dropped something carries S's revision wherever it goes, and whoever peeks at it
	// waits for that revision. Otherwise the context alone takes what S dropped from replicas that lack that S.
	DropsCarryRevision bool
	// DropRule: what S covers is dropped wherever it arrives. Otherwise hints, repairs and readers keep it.
	DropRule bool
}

// AllRules is the protocol as designed.
func AllRules() Rules {
	return Rules{
		NodeBreaksTies: true, PutIsOneEntry: true, AppendedIsFenced: true, PeekPromises: true, PromiseSurvives: true,
		RestampKeepsID: true, PeekAgain: true, ContextCoversDots: true, PeekMajority: true, SettleBeforeAnswer: true,
		SettleExpectsRevision: true, SettleKeepsStamp: true, SettleCoversWinner: true, BaseIsAppended: true,
		BaseTermIsCommitted: true, FenceBeforeCovered: true, HigherBeforeCovered: true, DropsCarryRevision: true,
		DropRule: true,
	}
}
