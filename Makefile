# `make demo` shows it, `make check` and `make test` prove it, `make up` leaves it running, `make bench` measures it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BENCH ?= all
# Which of the end-to-end tests `make test` runs: part of a name, such as payments::a_part; nothing means everything.
T ?=
# Most of an end-to-end test is waiting for a block, a poll or a process: more of them run at once than there are cores.
THREADS ?= $(shell expr 2 \* $$(nproc))

# What is built beside the tests: ctrip, which the end-to-end tests run, the examples, the demo and the benches.
BUILD := cargo build --workspace --all-targets
# Prints how long each test took.
TEST := cargo test --quiet --config 'target."cfg(unix)".runner = "dev/timed"' --workspace

.PHONY: help demo check test up down bench build build-tests lint doc deps

help:
	@echo "make demo   install, build, start the parts, and watch payments from creation to confirmation"
	@echo "make check  formatting, clippy, and the tests that need no stack"
	@echo "make test   all tests, on the real parts; T=payments::a_part for one end-to-end test or module"
	@echo "make up     leave it running: prints the URL, a key and a first curl (make down stops it)"
	@echo "make bench  the speed figures (BENCH=detector, api, latency, ingest, confirmer or webhooks for one of them)"
	@echo "make lint   formatting and clippy; make doc: the docs of the code; make deps: licences, sources, unused dependencies"
