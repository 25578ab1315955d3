package sim

import (
	"fmt"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counters keeps the counters of all lives of all nodes, so that a run can show what took part in it. The gauges are not
// among them: those of a node that is gone would read from storage that is closed.
type counters struct {
	mu    sync.Mutex // guards lives
	lives []*prometheus.Registry
}

// register returns a registerer for one life of a node.
func (c *counters) register() prometheus.Registerer {
	r := &countingRegisterer{Registry: prometheus.NewRegistry(), counters: prometheus.NewRegistry()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives = append(c.lives, r.counters)
	return r
}

// countingRegisterer registers counters a second time, apart from all else.
type countingRegisterer struct {
	*prometheus.Registry
	counters *prometheus.Registry
}

// Register implements prometheus.Registerer.
func (r *countingRegisterer) Register(c prometheus.Collector) error {
	if err := r.Registry.Register(c); err != nil {
		return err
	}
	_, vector := c.(*prometheus.CounterVec)
	_, one := c.(prometheus.Counter)
	if _, gauge := c.(prometheus.Gauge); gauge || !vector && !one {
		return nil
	}
	return r.counters.Register(c)
}

// MustRegister implements prometheus.Registerer.
func (r *countingRegisterer) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// Total sums up a counter over all nodes and all of their lives. Of a counter with labels only what has the given value in
// one of them is counted, all of it where the value is "".
func (c *Cluster) Total(name, value string) (sum float64, err error) {
	c.counters.mu.Lock()
	defer c.counters.mu.Unlock()
	for _, life := range c.counters.lives {
		families, err := life.Gather()
		if err != nil {
			return 0, fmt.Errorf("sim: counters: %w", err)
		}
		for _, family := range families {
			if family.GetName() != name {
				continue
			}
			for _, m := range family.GetMetric() {
				counts := value == ""
				for _, label := range m.GetLabel() {
					counts = counts || label.GetValue() == value
				}
				if counts {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum, nil
}

// Totals sums up several counters, each spelled as its name or as name=value.
func (c *Cluster) Totals(names ...string) (map[string]float64, error) {
	out := map[string]float64{}
	for _, n := range names {
		name, value, _ := strings.Cut(n, "=")
		sum, err := c.Total(name, value)
		if err != nil {
			return nil, err
		}
		out[n] = sum
	}
	return out, nil
}
