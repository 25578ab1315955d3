//go:build !mutant_no_sync && !mutant_send_before_persist && !mutant_vote_not_persisted && !mutant_leader_counts_itself && !mutant_local_read_as_strong && !mutant_read_before_apply && !mutant_read_without_quorum && !mutant_repeated_request_served && !mutant_quorum_counted_early && !mutant_own_copy_ignored && !mutant_failure_counted_as_ack && !mutant_dot_repeated && !mutant_context_ignored && !mutant_merge_overwrites && !mutant_blind_write_covers && !mutant_tombstone_dropped && !mutant_late_stamp_accepted && !mutant_wiped_disk_votes && !mutant_apply_reads_clock && !mutant_snapshot_not_atomic && !mutant_truncated_too_early && !mutant_no_dedup && !mutant_snapshot_without_dedup && !mutant_batch_in_part && !mutant_expiry_unchecked && !mutant_follower_reads_alone && !mutant_tombstone_collected_early && !mutant_tree_not_marked && !mutant_late_dot_accepted && !mutant_state_hashed_late && !mutant_quarantine_forgotten && !mutant_first_answer_wins && !mutant_repair_after_answer && !mutant_list_skips_page_edge && !mutant_counter_adds && !mutant_expired_returned

package mutant

// Planted is the bug that is compiled in: none.
const Planted Name = ""
