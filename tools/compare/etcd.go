package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/caprockdb/caprock/pkg/kv"
	"github.com/caprockdb/caprock/pkg/workload"
)

// etcdTarget uses etcd's own client, with one connection to each node in turn: a single one would be its limit.
type etcdTarget struct {
	clients []*clientv3.Client
	turn    atomic.Uint64
}

func newEtcdTarget(endpoints []string) (*etcdTarget, error) {
	t := &etcdTarget{}
	for _, e := range endpoints {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{e}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.close()
			return nil, err
		}
		t.clients = append(t.clients, c)
	}
	return t, nil
}

func (t *etcdTarget) close() {
	for _, c := range t.clients {
		_ = c.Close() // nothing is under way any more
	}
}

// Do implements workload.Target.
func (t *etcdTarget) Do(ctx context.Context, op workload.Op) (err error) {
	ctx, cancel := context.WithTimeout(ctx, op.Timeout)
	defer cancel()
	c := t.clients[t.turn.Add(1)%uint64(len(t.clients))]
	if op.Kind == kv.OpPut {
		_, err = c.Put(ctx, op.Key, string(op.Value))
	} else {
		_, err = c.Get(ctx, op.Key)
	}
	return failure(err)
}

func failure(err error) error {
	if err == nil {
		return nil
	}
	return kv.Errorf(kv.CodeInternal, "%w", err)
}

// etcdHTTPTarget uses etcd's JSON gateway.
type etcdHTTPTarget struct {
	client    *http.Client
	endpoints []string
	turn      atomic.Uint64
}

func newEtcdHTTPTarget(endpoints []string, clients int) *etcdHTTPTarget {
	return &etcdHTTPTarget{endpoints: endpoints, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: clients, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}}
}

// Do implements workload.Target.
func (t *etcdHTTPTarget) Do(ctx context.Context, op workload.Op) error {
	ctx, cancel := context.WithTimeout(ctx, op.Timeout)
	defer cancel()
	path, body := "/v3/kv/range", `{"key":"`+base64.StdEncoding.EncodeToString([]byte(op.Key))+`"`
	if op.Kind == kv.OpPut {
		path, body = "/v3/kv/put", body+`,"value":"`+base64.StdEncoding.EncodeToString(op.Value)+`"`
	}
	url := "http://" + t.endpoints[t.turn.Add(1)%uint64(len(t.endpoints))] + path
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body+"}"))
	if err != nil {
		return failure(err)
	}
	response, err := t.client.Do(r)
	if err != nil {
		return failure(err)
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return failure(err)
	}
	if response.StatusCode != http.StatusOK {
		return failure(fmt.Errorf("etcd answered %s", response.Status))
	}
	return nil
}
