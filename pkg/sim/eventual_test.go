package sim

import (
	"testing"
	"time"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/node"
	"github.com/caprockdb/caprock/pkg/verify"
)

// wholeLane lets all of the eventual lane take part in a run of seconds: anti-entropy and the watermark are quick, and hints
// reach both of their caps, so that what they are given up for has to come by exchange.
func wholeLane(cfg *node.Config) {
	quickRepair(cfg)
	cfg.Hints.BytesMax, cfg.Hints.AgeMax = 2<<10, 3*time.Second
}

// partsOfTheLane are the counters that say that each part did something.
func partsOfTheLane() []string {
	return []string{
		"kvstore_hints_queued_total", "kvstore_hints_replayed_total", "kvstore_hints_dropped_total=bytes", "kvstore_hints_dropped_total=age",
		"kvstore_read_repair_total", "kvstore_antientropy_exchanges_total=repaired", "kvstore_antientropy_watermarks_total=raised",
		"kvstore_eventual_collected_total", "kvstore_eventual_skewed_total",
	}
}

// skewedFaults are all faults, wrong clocks more often than others: of a clock as far ahead as ten minutes what it stamped is
// refused for as long.
func skewedFaults() []Fault { return append(Faults(), FaultSkew, FaultSkew) }

func TestSiblingsAreTheCausalMaximaWhenTheWholeLaneTakesPart(t *testing.T) {
	verified{
		workload: verify.WorkloadCausal, nodes: 3, faults: skewedFaults(), lane: 44, tune: wholeLane,
		ahead: skewMax, slow: true, involved: partsOfTheLane(),
	}.run(t)
}

// One disk is fewer than W.
func TestSiblingsAreTheCausalMaximaAfterTheLossOfADisk(t *testing.T) {
	verified{
		workload: verify.WorkloadCausal, nodes: 3, faults: append(skewedFaults(), FaultWipe, FaultWipe), wipes: 1, lane: 45,
		tune: wholeLane, ahead: skewMax, slow: true, involved: partsOfTheLane(),
	}.run(t)
}

// A write that one replica alone acknowledged is on one disk, which no fault here takes away: it must come to all.
func TestSiblingsOfSingleReplicasAreTheCausalMaxima(t *testing.T) {
	verified{
		workload: verify.WorkloadCausal, nodes: 3, faults: skewedFaults(), lane: 46, tune: wholeLane,
		ahead: skewMax, slow: true, quorum: kv.Quorum{N: 3, R: 1, W: 1}, involved: partsOfTheLane(),
	}.run(t)
}

// Rows are lost or damaged underneath one replica all the time. What it has acknowledged, one other replica at least has too.
func TestRowsThatRotAwayUnderOneReplicaAreNotLost(t *testing.T) {
	// Nodes do not crash here: see "Not covered" in docs/testing.md.
	faults := []Fault{FaultRot, FaultRot, FaultRot, FaultCut, FaultNoise, FaultOneWay, FaultSlow, FaultFlapping}
	verified{
		workload: verify.WorkloadCausal, nodes: 3, faults: faults, lane: 48, rots: true,
		tune: func(cfg *node.Config) {
			wholeLane(cfg)
			cfg.AntiEntropy.ScrubInterval = 2 * time.Second
		},
		involved: []string{"kvstore_antientropy_damaged_rows_total", "kvstore_antientropy_exchanges_total=repaired", "kvstore_hints_queued_total"},
	}.run(t)
}

func TestClocksTenMinutesWrongBuryNoAcknowledgedElement(t *testing.T) {
	faults := []Fault{FaultSkew, FaultSkew, FaultCut, FaultKill, FaultPower, FaultOneWay}
	verified{
		workload: verify.WorkloadSet, nodes: 3, faults: faults, lane: 47, tune: wholeLane, ahead: skewMax, slow: true,
		involved: []string{"kvstore_eventual_skewed_total", "kvstore_hints_queued_total"},
	}.run(t)
}
