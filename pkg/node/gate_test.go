package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStorageIsClosedOnlyOnceEverybodyHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		require.True(t, g.enter())
		require.True(t, g.enter())
		shut := make(chan struct{})
		go func() {
			g.close()
			close(shut)
		}()
		<-g.closing.Done()
		require.False(t, g.enter(), "nobody enters a gate that is shut")
		g.leave()
		synctest.Wait()
		select {
		case <-shut:
			t.Fatal("somebody is still inside")
		default:
		}
		time.Sleep(time.Second)
		g.leave()
		<-shut
	})
}
