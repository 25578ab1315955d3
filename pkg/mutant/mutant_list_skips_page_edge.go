//go:build mutant_list_skips_page_edge

package mutant

// Planted is the bug that is compiled in.
const Planted = ListSkipsPageEdge
