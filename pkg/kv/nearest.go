package kv

// nearestBytesMax bounds how much of an unknown name is compared: the names we know are far shorter.
const nearestBytesMax = 64

// Nearest returns the known name with the smallest edit distance to name, the first of several, "" when none is known: what somebody
// may have meant who misspelled a setting, a parameter or a field.
func Nearest(name string, known []string) string {
	if len(name) > nearestBytesMax {
		name = name[:nearestBytesMax]
	}
	best, bestDistance := "", -1
	for _, k := range known {
		if d := editDistance(name, k); bestDistance < 0 || d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions and replacements of bytes that turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
