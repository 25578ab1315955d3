package ring

import "math"

// shareTolerance absorbs rounding: a share this close to an integer is that integer. It is far above the error of the
// sums below and far below 1/WeightMax.
const shareTolerance = 1e-6

// divide splits total in proportion to the weights, each part within its span. The sum of the spans must enclose total.
func divide(total float64, weights []float64, spans []span) []float64 {
	parts := func(level float64) ([]float64, float64) {
		out, sum := make([]float64, len(weights)), 0.0
		for i, w := range weights {
			// The conversion keeps the compiler from fusing multiplication and addition, which would round
			// differently on another architecture.
			out[i] = min(max(float64(level*w), float64(spans[i].lo)), float64(spans[i].hi))
			sum += out[i]
		}
		return out, sum
	}
	// The sum grows with the level, so the level is found by bisection. Every weight is at least 1, so at a level of
	// the highest hi every part is at its own.
	low, high := 0.0, 0.0
	for _, s := range spans {
		high = max(high, float64(s.hi))
	}
	for range 64 {
		mid := (low + high) / 2
		if _, sum := parts(mid); sum < total {
			low = mid
		} else {
			high = mid
		}
	}
	out, _ := parts(high)
	return out
}

// divideNested splits each total among the children that parentOf assigns to it.
func divideNested(totals, weights []float64, spans []span, parentOf []int) []float64 {
	out := make([]float64, len(weights))
	for parent, total := range totals {
		var index []int
		var w []float64
		var s []span
		for child, of := range parentOf {
			if of == parent {
				index = append(index, child)
				w = append(w, weights[child])
				s = append(s, spans[child])
			}
		}
		for i, part := range divide(total, w, s) {
			out[index[i]] = part
		}
	}
	return out
}

// roundShare returns the integers around a share.
func roundShare(share float64) (low, high int) {
	return int(math.Floor(share + shareTolerance)), int(math.Ceil(share - shareTolerance))
}
