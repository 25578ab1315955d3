//go:build mutant_session_lane_ignored

package mutant

// Planted is the bug that is compiled in.
const Planted = SessionLaneIgnored
