# Caprock. `make help` lists what can be made.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN      := bin/caprock
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
GO_FILES := $(shell find . -name '*.go' -not -name '*.pb.go' -not -path './.caprock/*')
# Everything but the race detector is built without cgo, so that building and testing share what they compile.
export CGO_ENABLED ?= 0
# Tools are pinned in a module of their own, so that their dependencies never touch those of the binary. The first use
# of each compiles it, minutes on two cores; later ones take seconds.
TOOL     := go tool -modfile=tools/go.mod
DEMO     := .caprock/demo

# Packages whose whole point is concurrency or protocol: what the race detector is worth its price for on every commit.
RACE_PACKAGES := ./pkg/causal/... ./ring/... ./quorum/... ./consensus/... ./antientropy/... ./pkg/meta/... \
	./pkg/membership/... ./pkg/transport/... ./pkg/client/... ./pkg/node/... ./api/...

# Of make bench: how long each cell of the table is measured, and where the table is written as Markdown (nowhere if empty).
export DURATION ?= 3s
export BENCH_OUT ?=

# Of make test-verify: how long each pair runs, and where its histories and logs go.
VERIFY_FOR ?= 45s
VERIFY_OUT ?= .caprock/verify

# Where make cover writes what make stats reads.
COVER := .caprock/cover

# More seeds for the simulated cluster: make test-sim SIM_SEEDS=1000
SIM_SEEDS ?= 20

##@ Building

.PHONY: build
build: ## Build bin/caprock, a static binary
	go build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/caprock

.PHONY: generate
generate: ## Generate code from the protos again
	$(TOOL) buf lint
	$(TOOL) buf generate

.PHONY: check-generate
check-generate: generate ## Fail if generating again changes what is committed
	git diff --exit-code -- api/kvpb api/peerpb

.PHONY: clean
clean: ## Remove what was built, and the demo cluster's data
	@if [ -x $(BIN) ]; then $(BIN) demo --data-dir $(DEMO) --stop; fi
	rm -rf bin .caprock

##@ Running

.PHONY: start-cluster
start-cluster: build ## Start three nodes and the gateway in the background, and wait until they are ready
	@$(BIN) demo --data-dir $(DEMO) --detach

.PHONY: stop-cluster
stop-cluster: ## Stop that cluster; its data stays in .caprock/demo (make clean removes it)
	@if [ -x $(BIN) ]; then $(BIN) demo --data-dir $(DEMO) --stop; else echo 'No cluster runs: nothing has been built.'; fi

##@ Testing

.PHONY: test
test: ## Run all tests, real processes on loopback included (minutes)
	go test -timeout 10m ./...

.PHONY: test-race
test-race: ## Run the tests of the concurrent packages under the race detector
	CGO_ENABLED=1 go test -race -short -timeout 20m $(RACE_PACKAGES)

.PHONY: test-sim
test-sim: ## Run the simulated cluster on SIM_SEEDS seeds
	CAPROCK_SIM_SEEDS=$(SIM_SEEDS) go test -count=1 -timeout 30m ./pkg/sim/...

.PHONY: availability
availability: ## Print what each level goes on doing while one of three nodes is cut off (a minute)
	CAPROCK_SIM_SEEDS=24 go test -count=1 -run '^TestAvailabilityOfEachLevelOverAPartition$$' -v ./pkg/sim | grep '|'

.PHONY: mutants
mutants: ## Build each planted bug and simulate until it is caught (minutes; MUTANTS="name name" for some)
	go run ./cmd/mutants $(MUTANTS)

.PHONY: test-verify
test-verify: build ## Workloads on real processes under faults, seven pairs of VERIFY_FOR each
	@for pair in register:partition,kill batch:partition,kill,pause,power,disk-full expiry:partition,kill,pause append:pause,power causal:partition,clock,kill,power,wipe set:disk-full,slow,kill mixed:partition,kill,pause,power,slow,clock; do \
		echo "caprock verify --workload $${pair%%:*} --nemesis $${pair#*:} --duration $(VERIFY_FOR)"; \
		$(BIN) verify --nodes 3 --workload "$${pair%%:*}" --nemesis "$${pair#*:}" --duration $(VERIFY_FOR) --out "$(VERIFY_OUT)/$${pair%%:*}" -o json; \
	done

.PHONY: test-comprehensive
test-comprehensive: ## Everything: race detector everywhere, 200 seeds of a minute each, planted bugs, real processes (hours)
	CGO_ENABLED=1 go test -race -timeout 60m ./...
	CAPROCK_SIM_FAULTY=60s CAPROCK_SIM_SEEDS=200 go test -count=1 -timeout 600m ./pkg/sim/...
	CAPROCK_AWAY_WRITES=1000000 CAPROCK_SNAPSHOT_MIB=1024 go test -count=1 -timeout 60m -run 'AwayForAMillion|LargeSnapshot' -v ./consensus
	CAPROCK_LANE_KEYS=100000 go test -count=1 -timeout 60m -run LanesAreSwitched -v ./cmd/caprock
	CAPROCK_MODEL_WALKS=2000000 go test -count=1 -timeout 120m ./pkg/sim/model
	CAPROCK_STORAGE_SEEDS=200 go test -count=1 -timeout 60m -run Crash ./pkg/storage
	$(MAKE) mutants
	$(MAKE) test-verify

.PHONY: bench
bench: build ## Measure puts and gets at each level, and how long a killed leader is missed (DURATION=3s a cell, KILLS=20; BENCH_OUT=FILE)
	CAPROCK_BIN=$(CURDIR)/$(BIN) go test -run '^$$' -bench "BenchmarkCluster|BenchmarkFailover" -benchtime 1x -timeout 60m ./pkg/workload

.PHONY: bench-compare
bench-compare: build ## Caprock beside etcd (in the PATH, or ETCD=path), row by row in one run (DURATION=3s a row)
	cd tools/compare && go run . -caprock $(CURDIR)/$(BIN) -etcd "$(or $(ETCD),etcd)" -duration "$(or $(DURATION),3s)"

##@ Habits

.PHONY: stats
stats: ## Print the measures of the code; after make cover also its coverage and the slowest tests
	@go run ./cmd/stats -cover $(COVER)/profile -tests $(COVER)/tests.json

.PHONY: cover
cover: ## Run all tests, and note for make stats which statements ran and how long each test took (minutes)
	@mkdir -p $(COVER)
	go test -count=1 -timeout 20m -json -coverpkg=./... -coverprofile=$(COVER)/profile ./... >$(COVER)/tests.json || \
		{ grep '"Action":"fail"' $(COVER)/tests.json; exit 1; }

.PHONY: lint
lint: ## Check format, layers and common mistakes
	$(TOOL) golangci-lint run
	@unformatted=$$($(TOOL) gofumpt -l $(GO_FILES)); \
	if [ -n "$$unformatted" ]; then echo "make fmt would change:"; echo "$$unformatted"; exit 1; fi

.PHONY: fmt
fmt: ## Format the code
	$(TOOL) gofumpt -w $(GO_FILES)

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-zA-Z_-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
