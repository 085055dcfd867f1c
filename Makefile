# `make help` lists what there is to do.

PYTHON ?= python3
VENV ?= .venv
# One virtual environment in it for each proxy of the benchmark that is a Python package.
PEERS ?= .venv-peers
# Arguments for the demo, the Python tests, the benchmark, the soak or the lab, such as ARGS="--headless".
ARGS ?=
SOAK_MINUTES ?= 60
# Of them about 500 have a stream open at any time.
SOAK_CLIENTS ?= 720
# Repeats a soak; chosen by chance if empty.
SOAK_SEED ?=

PIP_STAMP := $(VENV)/.installed
NODE_STAMP := tests/node_modules/.installed
LLAMA := $(VENV)/bin/python tests/engines/llama_server.py

.PHONY: help demo demo-llama test test-rust test-python test-node check fuzz bench soak lab clean FORCE
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: ## build, then show a model server being killed and nobody noticing
	cargo build --release -p backstop
	target/release/backstop demo $(ARGS)

demo-llama: $(PIP_STAMP) ## the same with real llama.cpp servers and a small real model
	cargo build --release -p backstop
	target/release/backstop demo --engine llama.cpp --server-command "$(LLAMA) --port {port}" $(ARGS)

test: ## run all tests, installing what they need
	scripts/test

test-rust: ## the Rust tests only
	cargo test --workspace --no-fail-fast

test-python: $(PIP_STAMP) ## the Python tests only: official SDK, real llama.cpp servers, promtool
	@scripts/install_promtool
	cargo build -p backstop
	$(VENV)/bin/python -m pytest tests/python $(ARGS)

test-node: $(PIP_STAMP) $(NODE_STAMP) ## the Node tests only: official SDK
	cargo build -p backstop
	node --test tests/node/*.test.mjs

check: ## formatting, lints, docs, dependency rules, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --quiet
	$(PYTHON) scripts/check_dependencies.py
	$(PYTHON) scripts/check_pins.py
	$(PYTHON) scripts/check_limits.py
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "cargo-deny is not installed: licences and advisories were not checked"; \
	     echo "hint: cargo install cargo-deny --locked"; fi

fuzz: ## look for input that breaks a parser, FUZZ_SECONDS (600) for each target
	scripts/fuzz $(ARGS)

bench: ## compare with other proxies; writes docs/benchmarks.md unless ARGS is set
	cargo build --release -p backstop -p backstop-bench
	@PYTHON="$(PYTHON)" scripts/install_peers "$(PEERS)"
	mkdir -p bench/results docs
	target/release/backstop-bench run --backstop target/release/backstop --environments "$(PEERS)" \
	    --out bench/results/latest.json $(ARGS)
	target/release/backstop-bench report bench/results/latest.json > bench/results/report.md
ifeq ($(strip $(ARGS)),)
	cp bench/results/latest.json docs/benchmarks.json
	cp bench/results/report.md docs/benchmarks.md
else
	@echo "wrote bench/results/report.md; docs/benchmarks.md is written by a run without ARGS"
endif

soak: ## an hour of load while replicas fail in every way, at random; writes docs/soak.md
	cargo build --release -p backstop -p backstop-soak
	target/release/backstop-soak --backstop target/release/backstop --minutes $(SOAK_MINUTES) --clients $(SOAK_CLIENTS) \
		$(if $(SOAK_SEED),--seed $(SOAK_SEED)) --out soak/results --docs docs $(ARGS)

lab: ## simulate rules of release; writes docs/decision-quality.md unless ARGS is set, which takes long
	cargo build --release -p backstop
	target/release/backstop lab decision $(if $(strip $(ARGS)),$(ARGS),--out docs)

clean: ## remove everything that was built or installed
	cargo clean
	rm -rf fuzz/target fuzz/artifacts $(VENV) $(PEERS) .tools tests/node_modules bench/results soak/results

# The stamps hold a digest of what was asked for, so a changed list is installed again and nothing else is.
$(PIP_STAMP): FORCE
	@PYTHON="$(PYTHON)" scripts/install_python "$(VENV)"

$(NODE_STAMP): FORCE
	@scripts/install_node

FORCE:
