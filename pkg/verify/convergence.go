package verify

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Dump is what one replica holds of one group of keys.
type Dump struct {
	// Group names what the replica is one of, such as a partition. Only dumps of one group are compared.
	Group string
	// Node names the replica.
	Node string
	// Rows is its content.
	Rows map[string][]byte
}

// CheckConvergence checks that the replicas of each group hold the same rows, byte by byte.
func CheckConvergence(dumps ...Dump) Result {
	res := newResult("convergence")
	groups := map[string][]*Dump{}
	var names []string
	for i := range dumps {
		d := &dumps[i]
		if len(groups[d.Group]) == 0 {
			names = append(names, d.Group)
		}
		groups[d.Group] = append(groups[d.Group], d)
	}
	slices.Sort(names)
	for _, name := range names {
		checkGroup(&res, name, groups[name])
	}
	return res
}

func checkGroup(res *Result, name string, replicas []*Dump) {
	keys := map[string]bool{}
	for _, d := range replicas {
		for k := range d.Rows {
			keys[k] = true
		}
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	for _, k := range sorted {
		res.Keys++
		res.Operations += len(replicas)
		if same(replicas, k) {
			continue
		}
		parts := make([]string, len(replicas))
		for i, d := range replicas {
			parts[i] = d.Node + " holds " + rowText(d.Rows, k)
		}
		res.add("replicas differ", text([]byte(k)), "group "+name+": "+strings.Join(parts, ", "))
	}
}

func same(replicas []*Dump, key string) bool {
	first, has := replicas[0].Rows[key]
	for _, d := range replicas[1:] {
		if v, ok := d.Rows[key]; ok != has || !bytes.Equal(v, first) {
			return false
		}
	}
	return true
}

// rowTextMax bounds the bytes of a row that an anomaly shows.
const rowTextMax = 200

func rowText(rows map[string][]byte, key string) string {
	v, ok := rows[key]
	if !ok {
		return "nothing"
	}
	if len(v) > rowTextMax {
		return fmt.Sprintf("%q… (%d bytes)", v[:rowTextMax], len(v))
	}
	return quote(string(v))
}

func quote(s string) string { return strconv.Quote(s) }
