package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/caprockdb/caprock/pkg/verify/live"
)

// progressWidth is how many characters the bar itself has.
const progressWidth = 24

// progressBar draws how far a verification is, on a terminal and nowhere else. It is used by one goroutine at a time.
type progressBar struct {
	app   *app
	total time.Duration
	shown bool // there is something on the line
}

func newProgressBar(a *app, total time.Duration) *progressBar {
	return &progressBar{app: a, total: total}
}

// update returns the function that draws, nil where nobody would see it.
func (b *progressBar) update() func(live.Progress) {
	if !isTerminal(b.app.stderr) {
		return nil
	}
	return func(p live.Progress) {
		b.shown = true
		fmt.Fprintf(b.app.stderr, "\r\x1b[K%s", progressLine(p, b.total))
	}
}

func progressLine(p live.Progress, total time.Duration) string {
	done := min(1, max(0, p.Elapsed.Seconds()/total.Seconds()))
	filled := int(done * progressWidth)
	return fmt.Sprintf("[%s%s] %s  %d operations  %d faults", strings.Repeat("#", filled), strings.Repeat(".", progressWidth-filled),
		p.Phase, p.Operations, p.Faults)
}

// clear leaves the line empty for what comes next.
func (b *progressBar) clear() {
	if b.shown {
		fmt.Fprint(b.app.stderr, "\r\x1b[K")
	}
}
