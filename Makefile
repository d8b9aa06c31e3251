# The front door of tidemill. `make help` lists what there is to do.
#
# One build profile (release, with assertions on) serves the demo, the tests and the benchmarks, and
# the target directory lies outside the checkout, so that RocksDB, wasmtime and librdkafka are
# compiled once per machine: about 20 minutes on two cores, then never again.

SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tidemill
export CARGO_TARGET_DIR ?= $(CACHE)/target
export CARGO_TERM_COLOR ?= auto

# clang compiles RocksDB in two thirds of g++'s time.
ifneq ($(shell command -v clang++ 2>/dev/null),)
export CC := clang
export CXX := clang++
endif

CARGO ?= cargo
BIN := $(CARGO_TARGET_DIR)/release
DENY := $(CACHE)/tools/bin/cargo-deny

# Integration tests wait, for sessions to end and groups to form, more than they compute, so more of
# them run at once than there are cores. Those with deadlines of their own run one after the other.
MOSTLY_WAITING = RUST_TEST_THREADS=8

# The suites that run on either broker: with TIDEMILL_KAFKA=apache on that one, else on the embedded.
BROKER_SUITES = $(MOSTLY_WAITING) $(CARGO) test --release --workspace --test conformance --test kafka $(TEST_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help setup build demo orders test simulate mutants faults inbox matrix chaos outbox poison swap reads fault-node native-node hostile soak api lint advisories bench bench-guard bench-pair bench-load bench-steps bench-ingestion recovery conformance clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install (as root) or name what this machine lacks; instant when nothing is missing (CI=1: what can be left out is missing too)
	@.ci/setup

build: setup ## Build every program of the workspace
	$(CARGO) build --release --workspace --bins

demo: build ## Run the flights pipeline on the embedded broker (CI=1: end by itself and check every number)
	@$(BIN)/flights-demo $(if $(CI),--check) $(DEMO_FLAGS)

orders: build ## Run the orders example: a saga, a node killed in it, a webhook that fails, RabbitMQ if it is installed
	@$(BIN)/tidemill-orders

test: build ## Run every test, those against Apache Kafka included
	@# Unit tests are built with the planted bugs in them, all switched off: `make mutants` runs the same.
	$(CARGO) test --release --workspace --lib --features tidemill/faults $(TEST_FLAGS)
	$(MOSTLY_WAITING) $(CARGO) test --release --workspace --exclude tidemill-matrix --bins --test '*' $(TEST_FLAGS)
	$(CARGO) test --release --workspace --exclude tidemill-matrix --doc $(TEST_FLAGS)
	TIDEMILL_KAFKA=apache $(BROKER_SUITES)

simulate: setup ## Run real workers and stores over a model of Kafka, one seed a case (SEEDS=; TIDEMILL_SEED= runs one)
	TIDEMILL_SEEDS=$(or $(SEEDS),20000) $(CARGO) test --release --workspace --lib --features tidemill/faults node::simulation -- --nocapture

mutants: setup ## Plant each known bug and see the simulation find it (SEEDS= that it may survive)
	@CARGO="$(CARGO)" SEEDS=$(SEEDS) .ci/mutants

conformance: build ## Run one suite against the embedded broker and against Apache Kafka
	$(BROKER_SUITES)
	TIDEMILL_KAFKA=apache $(BROKER_SUITES)

fault-node: build
	@# The node with crash points in it; it lies beside the others and is for tests only.
	$(CARGO) build --release --workspace --bin tidemill-faults --features tidemill-tests/faults

native-node: build
	@# The node with a native handler in it; it lies beside the others and is for a measurement only.
	$(CARGO) build --release --workspace --bin tidemill-native --features tidemill-bench/native

faults: fault-node ## Kill a node at every step of a commit and at random, on Apache Kafka (FULL=1: ten times as many; EACH=50 of each step)
	@$(BIN)/tidemill-chaos faults $(if $(FULL),--full) $(if $(EACH),--each $(EACH)) $(if $(SEED),--seed $(SEED))

matrix: fault-node ## Run the fault matrix: each fault a named test, on Apache Kafka (ONLY=f07: one row, BROKER=embedded; ONLY=f17 MINUTES=10)
	TIDEMILL_KAFKA=$(or $(BROKER),apache) TIDEMILL_STORM_MINUTES=$(or $(MINUTES),0) $(CARGO) test --release --workspace --test matrix -- --nocapture $(ONLY)

chaos: fault-node ## Kill nodes of random configurations on both brokers (MINUTES= or ROUNDS=, SEED=, BROKER= or BROKERS=3)
	@$(BIN)/tidemill-chaos chaos $(if $(MINUTES),--minutes $(MINUTES),--rounds $(or $(ROUNDS),1)) \
		$(if $(SEED),--seed $(SEED)) $(if $(BROKER),--broker $(BROKER)) $(if $(BROKERS),--brokers $(BROKERS))

swap: build ## Exchange versions of a deployment at 20,000 records a second, on Apache Kafka (N= of them, below 50 the gap is only told; BROKER=embedded, SEED=)
	@$(BIN)/tidemill-swap $(if $(N),--deployments $(N)) $(if $(BROKER),--broker $(BROKER)) $(if $(SEED),--seed $(SEED))

hostile: build ## Run every hostile guest, module and client beside an innocent deployment (SHORT=1, ONLY=F26, MUTANTS=, BROKER=apache)
	@$(BIN)/tidemill-hostile cases $(if $(SHORT),--short --mutants $(or $(MUTANTS),30),$(if $(MUTANTS),--mutants $(MUTANTS))) \
		$(if $(ONLY),--only '$(ONLY)') $(if $(SEED),--seed $(SEED)) $(if $(BROKER),--broker $(BROKER))

soak: build ## Deploy and delete in a row, then run small deployments at once (COUNT=1000, SMALL=1,100,500, HANDLER=pass: without state, BROKER=apache)
	@$(BIN)/tidemill-hostile churn --count $(or $(COUNT),1000) --small $(or $(SMALL),200) \
		$(if $(HANDLER),--handler $(HANDLER)) $(if $(BROKER),--broker $(BROKER))

inbox: fault-node ## Repeat ids through an inbox while nodes are killed, on both brokers (FULL=1: ten million records; SEED=, BROKER=apache: all on that one)
	@$(BIN)/tidemill-inbox $(if $(FULL),--full) $(if $(SEED),--seed $(SEED)) $(if $(BROKER),--broker $(BROKER))

outbox: fault-node ## W7: misbehaving receivers, kills between commit and delivery, moves (SHORT=1, ONLY=rabbit, SEED=, BROKER=apache, CI=1: with RabbitMQ or not at all)
	@$(BIN)/tidemill-outbox $(if $(SHORT),--short) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
		$(if $(BROKER),--broker $(BROKER)) $(if $(CI),--complete)

poison: build ## Failures under load, parks through kills and lost disks, an interrupted redrive (SHORT=1, ONLY=, SEED=, BROKER=apache)
	@$(BIN)/tidemill-poison $(if $(SHORT),--short) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
		$(if $(BROKER),--broker $(BROKER))

reads: build ## Read every write at its position, ten thousand times, across swaps, moves and kills (ROUNDS=, BROKER=embedded)
	@$(BIN)/tidemill-reads $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(BROKER),--broker $(BROKER))

api: setup ## Write docs/api.md and proto/released.txt anew, after a change of the contracts
	TIDEMILL_WRITE=1 $(CARGO) test --release --workspace --test contract

lint: setup $(DENY) ## Check formatting, clippy without warnings, licences and sources of dependencies
	$(CARGO) fmt --all --check
	@# With the crash points, the planted bugs and the native handler; without them there is only less of it.
	$(CARGO) clippy --release --workspace --all-targets --features tidemill-tests/faults,tidemill-bench/native -- -D warnings
	@# The advisory database is a git repository; `make advisories` is for machines that reach it.
	$(DENY) --offline check licenses bans sources

advisories: $(DENY) ## Check dependencies against the RustSec advisory database (needs github.com)
	$(DENY) check advisories

$(DENY):
	@echo "Installing cargo-deny into $(CACHE)/tools, once, about five minutes on two cores."
	$(CARGO) install cargo-deny --locked --root $(CACHE)/tools --target-dir $(CACHE)/tools/target
	@rm -rf $(CACHE)/tools/target

# What the table of results has from elsewhere; a bar that is missed there fails, and does not keep the rest from being measured.
MEASURED_ELSEWHERE = swap 'soak COUNT=0 SMALL=1,100,500 HANDLER=pass BROKER=apache' bench-load

bench: native-node ## Measure tidemill beside a native loop and Kafka Streams, interleaved, on Apache Kafka; without WORKLOAD everything, restarts, swaps, small deployments and a rising load included (WORKLOAD=b1,b4 ROUNDS=5)
	@status=0; \
	$(BIN)/tidemill-bench run $(if $(WORKLOAD),--workload $(WORKLOAD)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_FLAGS) || status=$$?; \
	if [ -z '$(WORKLOAD)$(BENCH_FLAGS)' ]; then \
		for also in $(MEASURED_ELSEWHERE); do $(MAKE) --no-print-directory $$also || status=$$?; done; \
	fi; \
	exit $$status

bench-guard: build ## Fail if a map or a count costs clearly more, beside the native loop, than it does by now, or more memory: short, interleaved ratios
	@$(BIN)/tidemill-bench guard

bench-pair: build ## Measure two contenders at the same time, on the same input (A=tidemill B=loop, C= a third, WORK=count GUARANTEE=at-least-once ROUNDS=3)
	@$(BIN)/tidemill-bench pair $(if $(WORK),--work $(WORK)) $(if $(GUARANTEE),--guarantee $(GUARANTEE)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(PAIR_FLAGS) '$(or $(A),tidemill)' '$(or $(B),loop)' $(if $(C),'$(C)')

bench-load: build ## Raise the load of a node step by step until it does not keep up, and say in which way (STEPS=10000,20000)
	@$(BIN)/tidemill-bench load $(if $(STEPS),--steps $(STEPS)) $(LOAD_FLAGS)

bench-steps: setup ## Measure each step of a record's way by itself, in ns of CPU time per record, and instructions where they are counted
	$(CARGO) bench --profile release -p tidemill-bench --bench steps

bench-ingestion: build ## Measure ways in which a restore can write what it reads into RocksDB, in keys per second (INGESTION_FLAGS='--keys 3000000 --tasks 1')
	@$(BIN)/tidemill-bench ingestion $(INGESTION_FLAGS)

recovery: build ## Measure kill -9 to first new output beside Kafka Streams, 1 and 3 million keys, stores kept and deleted (ROUNDS=5)
	@$(BIN)/tidemill-bench restart $(if $(ROUNDS),--rounds $(ROUNDS)) $(RECOVERY_FLAGS)

clean: ## Remove this machine's build products and the demo's data
	rm -rf $(CARGO_TARGET_DIR) $(CACHE)/demo
