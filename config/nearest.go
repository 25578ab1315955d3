package config

import "github.com/spf13/pflag"

// Names returns the names of all settings, in the order of the help text.
func Names() []string {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := Default()
	bind(fs, &c)
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

func known(key string) bool {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := Default()
	bind(fs, &c)
	return fs.Lookup(key) != nil
}

// Nearest returns the candidate with the smallest edit distance to key, the first of several. It returns "" only when
// there is no candidate.
func Nearest(key string, candidates []string) string {
	best, bestDistance := "", 0
	for _, c := range candidates {
		if d := editDistance(key, c); best == "" || d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance is Levenshtein's: insertions, deletions and substitutions of bytes that turn a into b. It keeps one row
// of the usual table.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substituted := diagonal
			if a[i] != b[j] {
				substituted++
			}
			diagonal = row[j+1]
			row[j+1] = min(substituted, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
