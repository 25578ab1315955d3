package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSwitchesOfLongerPrefixesAreWaitedForAndOthersAreNot(t *testing.T) {
	raw := `{"policies":[{"prefix":"a/","state":"draining","switches":[
			{"prefix":"a/","state":"draining","phase":"sweep","waiting_for":[],"partitions":16,"partitions_swept":3,"hints":2,"settled_keys":7,"conflicts":1}]},
		{"prefix":"b/","state":"opening","switches":[{"prefix":"b/","state":"opening","phase":"fence","waiting_for":["n2","n3"]}]}],
		"switches":[{"prefix":"a/deleted","state":"opening","phase":"fence","problem":"n2 does not answer"}]}`
	under, err := switchesUnder([]byte(raw), "a/")
	require.NoError(t, err)
	require.Len(t, under, 2)
	require.Equal(t, `"a/deleted" is opening, phase fence: n2 does not answer`, under[0].progress())
	require.Equal(t, `"a/" is draining, phase sweep, 3 of 16 partitions swept, 7 keys settled, 2 hints left, `+
		"1 keys have concurrent versions that a strong write has to replace", under[1].progress())
	under, err = switchesUnder([]byte(raw), "b/")
	require.NoError(t, err)
	require.Equal(t, `"b/" is opening, phase fence, waiting for n2, n3`, under[0].progress())
	under, err = switchesUnder([]byte(raw), "c/")
	require.NoError(t, err)
	require.Empty(t, under)
	_, err = switchesUnder([]byte("<html>"), "")
	require.Error(t, err)
}
