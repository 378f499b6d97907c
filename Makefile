# Everything starts here: `make demo` shows sluice at work, `make test` proves it.
GO      ?= go
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)
export CGO_ENABLED = 0

.PHONY: build test conformance demo bench bench-docs bench-rootless bench-parts fuzz lint race clean deps

build: ## the one static binary
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o sluice ./cmd/sluice

deps: ## what the tests and the demo use, from Debian's packages where that may be done
	@sh e2e/deps.sh

demo: build deps ## real programs through a real router, explained
	@bash e2e/demo.sh

test: build deps ## every test; ends with the counts, skips with their reasons
	@$(GO) test -timeout 20m -json ./... | $(GO) run ./internal/testreport

SEED ?= 1
CASES ?= 10000
LAYER ?= all
conformance: deps ## sluice held against this machine's Linux: SEED= CASES= LAYER=text,packets,rulesets
	@cd internal/conformance && $(GO) test -count=1 -timeout 0 -args -long -seed=$(SEED) -cases=$(CASES) -layer=$(LAYER)

race: ## the unit tests under the race detector
	CGO_ENABLED=1 $(GO) test -race -timeout 20m ./packet/... ./conntrack/... ./nat/... ./tables/... ./netstack/... ./router/... ./internal/...

# BASE=FILE.json compares with an earlier run; BENCH=-short ends in five minutes.
bench: build deps ## sluice beside Linux, copy loops and others, end to end: table, JSON, HTML
	$(GO) run ./bench/harness -sluice ./sluice $(if $(BASE),-base $(BASE)) $(BENCH)

bench-docs: ## the same, and README.md and docs/ take the report over (BENCH=-show\ FILE.json: an earlier one's)
	@$(MAKE) bench BENCH="-docs $(BENCH)"

bench-rootless: build deps ## of it, the ways to the host's network without privilege
	$(GO) run ./bench/harness -sluice ./sluice -paths rootless -skip sweeps,memory -o bench-rootless $(if $(BASE),-base $(BASE)) $(BENCH)

bench-parts: ## the in-memory pipeline and its parts, as Go benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./bench/... ./packet/... ./conntrack/... ./nat/... ./tables/...

FUZZTIME ?= 60s
# An input that reaches something new is kept as it is: to make it smaller takes Go a
# minute, in which it tries nothing else.
fuzz: ## each fuzz target for FUZZTIME
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r d; do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$d/*_test.go | sed 's/^func //'); do \
	    echo "== $$d $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$d; \
	  done; done

lint: ## vet, formatting, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'gofmt: run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

clean:
	rm -f sluice
