# `make demo` shows it, `make check` and `make test` prove it, `make up` leaves it running, `make bench` measures it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BENCH ?= all
# Which end-to-end tests `make test` runs: part of a name, such as payments::a_part; all tests if empty.
T ?=
# Which modules `make mutants` changes: part of their paths; all of them if empty.
M ?=
# A test waits much of its time, for blocks, polls and time-outs, so twice as many run as there are cores.
THREADS ?= $(shell expr 2 \* $$(nproc))

TARGET := $(or $(CARGO_TARGET_DIR),target)
# As docs/operations.md says of a database of many payments.
LARGE := -c shared_buffers=4GB -c max_wal_size=4GB -c checkpoint_timeout=15min -c wal_compression=lz4
# Prints the duration of each test.
TEST := cargo test --config 'target."cfg(unix)".runner = "dev/timed"'

.PHONY: help demo check test up restart down bench build lint doc deps mutants alerts dashboards

help:
	@echo "make demo   install, build, start the parts, and watch payments from creation to confirmation"
	@echo "make check  formatting, clippy, and the tests that need no stack"
	@echo "make test   all tests, on the real parts (T=payments::a_part for one end-to-end test or module)"
	@echo "make up     leave it running: prints the URL, a key and a first curl (make down stops it and deletes its data)"
	@echo "make restart  ctrip again, built anew and with chains.yaml as it is now; the parts, the chain and all data stay"
	@echo "make bench  the speed figures (BENCH=detector, api, latency, ingest, confirmer, dust, webhooks, restore or scale for one of them)"
	@echo "make mutants  which changes to the pure modules no test notices (M=lifecycle for some of them); takes hours"
	@echo "make alerts  the rules of deploy/prometheus: that each alert fires by its fault; make dashboards  writes deploy/grafana"
	@echo "make lint   formatting and clippy; make doc  the code's documentation; make deps  licences, sources, unused dependencies, docker-compose.yml, systemd units"

build:
	@dev/stack toolchain
	@echo "building (the first time takes some minutes)"
	cargo build --workspace --bins

demo: build
	dev/with-stack $(TARGET)/debug/demo

check: lint
	dev/beside $(THREADS)

test:
	@dev/stack toolchain
	@echo "building (the first time takes some minutes)"
	cargo build --workspace --bins $(if $(T),--test e2e,--tests)
	@rm -rf target/lab
ifeq ($(T),)
	@dev/stack geth >/dev/null || [ $$? -eq 3 ]
	@dev/stack promtool >/dev/null || [ $$? -eq 3 ]
else
	@cargo test --quiet --workspace --test e2e -- --list $(T) 2>/dev/null | grep -q ': test$$' || \
	  { echo "T=$(T): expected a part of the name of an end-to-end test; their list: cargo test -p e2e --test e2e -- --list" >&2; exit 2; }
endif
	CTRIP_DEV_SHORT=yes $(if $(T),,dev/beside $$(nproc)) dev/with-stack $(TEST) --workspace --test e2e -- --test-threads $(THREADS) $(T)

up: build
	dev/run up

restart: build
	dev/run restart

down:
	dev/run down

bench:
	@dev/stack toolchain
	cargo build --release --workspace --bins
	$(if $(filter scale,$(BENCH)),CTRIP_DEV_POSTGRES="$(LARGE)") dev/with-stack $(TARGET)/release/bench $(BENCH)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# For the people who work on it, so with private items, to which links may lead.
doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items

deps:
	dev/deps
	dev/compose
	dev/systemd

mutants:
	@dev/stack toolchain
	dev/mutants $(M)

alerts:
	promtool=$$(dev/stack promtool) && cd deploy/prometheus && \
	  "$$promtool" check config prometheus.yml && "$$promtool" test rules rules_test.yml

dashboards:
	CTRIP_WRITE_DASHBOARDS=1 cargo test --quiet -p base --test alerts the_dashboards
