// Package verify judges what clients of a cluster saw. It records the operations of a run as a History, makes the
// operations (workloads), and checks the history against what each consistency level promises. It knows requests and
// answers only, so that the same code judges a simulated cluster in a synctest bubble and real processes.
//
// # A run
//
//	w, err := verify.NewWorkload(verify.DefaultConfig(verify.WorkloadRegister), rand.New(rand.NewPCG(seed, 0)))
//	h := verify.NewHistory()
//	set every policy of w.Policies(), and wait until every node lists it
//	w.Run(runCtx, target, h)             // until runCtx is done or cfg.Operations were made; h.Note(...) beside it
//	heal everything, wait until replicas had time to converge
//	err = w.Finish(finishCtx, target, h) // the final reads, each tried until it succeeds
//	report := w.Check(h, timeout)        // report.Valid, report.Anomalies, report.Operations, report.Unknown
//
// Target is the one thing that a caller supplies: it takes a client's request to a node. For a simulated cluster that is
//
//	verify.TargetFunc(func(ctx context.Context, client int, r *kv.Request) (kv.Response, error) {
//		return cluster.Execute(ctx, pick(client), r)
//	})
//
// It should spread one client's operations over the nodes: the bugs worth finding need several coordinators.
//
// A scenario that wants to make its own requests records them with Record, or steps a Workload itself with Next and Done.
//
// # Outcomes
//
// An operation is ok when it was answered. A conditional write that missed was answered too: it observed the key's
// version. A write whose error says kv.OutcomeNotApplied is a failure and must leave no trace; any other error, a
// timeout included, leaves the write unknown: it may take effect at any time until the end of the run, and may not. A read
// that failed says nothing and is ignored. Time is a counter of the history, never a clock: in a bubble many operations
// would share one instant, and ties read as concurrency.
//
// # Checkers
//
//	CheckLinearizable(h, timeout)      strong operations: registers, deletes, conditional writes, versions (porcupine)
//	CheckBatches(h, timeout)           atomic batches and listings of the keys of one {tag}: all of a batch at once, or none
//	CheckMixed(h, timeout)             the same, with the eventual writes of the key, which a majority acknowledged
//	CheckAppend(h)                     lists that grow by read and conditional write: nothing lost, doubled or reordered
//	CheckSet(h)                        elements added to keys with one writer: every acknowledged one is there at the end
//	CheckCausal(h, options)            siblings: at the end the causal maxima of what was acknowledged, nothing else
//	CheckSession(h, promised)          read your writes and monotonic reads, as observed; anomalies only if promised
//	CheckValues(h)                     nothing is read that was not written, on any key, at any level
//	CheckConvergence(dumps...)         replicas hold the same bytes
//	Visualize(h, keys, w)              porcupine's HTML page of the keys, with the history's notes as annotations
//
// Each returns a Result whose anomalies name the operations. A checker that could not decide, because the search for an
// order was cut off by its limits, is not valid: Result.Undecided counts the keys.
//
// # Invariants
//
//   - Values are unique within a history; every checker relies on it.
//   - A checker never blames a system for what an unknown write may have done, and never excuses it by a failed one.
//   - The readings of a clock in a history (Op.At, Op.Until) judge when values expire, and nothing else: no order follows from
//     them. Values that expire are judged as linearizable with what right clocks promise, within expirySlack.
//   - Nothing here keeps a global, or prints.
package verify
