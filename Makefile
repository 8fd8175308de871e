# `make demo` shows it, `make test` proves it, `make up` leaves it running, `make bench` measures it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BENCH ?= all

.PHONY: help demo test up down bench build lint

help:
	@echo "make demo   install, build, start the parts, and watch payments from creation to confirmation"
	@echo "make test   all tests, on the real parts"
	@echo "make up     leave it running: prints the URL, a key and a first curl (make down stops it)"
	@echo "make bench  the speed figures (BENCH=detector, api, latency, ingest, confirmer or webhooks for one of them)"
	@echo "make lint   formatting and clippy, as CI runs them"

build:
	@dev/stack toolchain
	@echo "building (the first time takes some minutes)"
	cargo build --workspace --bins

demo: build
	dev/with-stack target/debug/demo

test: build
	@rm -rf target/lab
	dev/with-stack cargo test --workspace

up: build
	dev/run up

down:
	dev/run down

bench:
	@dev/stack toolchain
	cargo build --release --workspace --bins
	dev/with-stack target/release/bench $(BENCH)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
