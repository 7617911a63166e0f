# `make` alone lists what there is. `make demo` and `make test` install what is missing (scripts/install-deps.sh).

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Targets are long and share one cargo: one after another. cargo uses all processors by itself.
.NOTPARALLEL:

export KVMETRY_TOOLS ?= $(HOME)/.cache/kvmetry-tools
export PATH := $(PATH):$(HOME)/.cargo/bin:$(KVMETRY_TOOLS)/bin

# Tests on the real libvirt start VMs and daemons: where the user is not root, only their binaries run as root.
ifneq ($(shell id -u),0)
SUDO := sudo --
REAL_ENV := env CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER="sudo -E --"
endif

# Where cargo puts what it builds for debugging; asked by those who need it.
DEBUG = $(shell cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: demo
demo: ## telemetry of real VMs on this machine and the dashboard, in the foreground (DEMO_SECONDS=30 ends by itself)
	@scripts/demo.sh

.PHONY: test
test: deps lint pages browser unit real browser-real ## install what is missing, then run every check and test, real libvirt included

.PHONY: deps
deps:
	scripts/install-deps.sh test

# npm makes this file when all is in place.
NODE_MODULES := web/node_modules/.package-lock.json
$(NODE_MODULES): web/package-lock.json
	cd web && npm ci --no-audit --no-fund

.PHONY: web
web: $(NODE_MODULES) ## the dashboard's pages, into web/dist, where the next build of kvmetry finds them (Node 20)
	cd web && npm run --silent build

.PHONY: pages
pages: web ## tests of the dashboard's pages: types, and what they compute
	cd web && npm run --silent check && npm test --silent

.PHONY: browser
browser: web ## the pages in Chromium against a made-up server
	cd web && npm run --silent test:browser

# With the programs that the other tests are built with: to build them alone would compile DataFusion once more.
# As root where the lab's VMs need it. With KVMETRY_WRITE_DOCS=1 the pictures of docs/images are made anew.
.PHONY: browser-real
browser-real: web ## the pages of the real program in Chromium: VMs of a lab, made-up history, what to do where there is nothing
	cargo nextest run --locked $(FEATURES) --no-run
	cd web && $(SUDO) env PATH="$$PATH" KVMETRY_WRITE_DOCS="$$KVMETRY_WRITE_DOCS" \
		KVMETRY="$(DEBUG)/kvmetry" XTASK="$(DEBUG)/xtask" npm run --silent test:real

.PHONY: lint
lint: ## formatting, clippy, the project's own rules, licences, generated documents
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked -p kvmetry --no-default-features -- -D warnings
	cargo xtask tidy
	cargo xtask docs --check
	cargo deny --locked check licenses bans sources

# The same features everywhere: with others, DataFusion and all below it would be compiled once more.
FEATURES := --workspace --features xtask/real-libvirt,kvmetry/real-libvirt
REAL := binary(/^(real|lab)$$/)

.PHONY: unit
unit: ## tests that need no libvirt
	cargo nextest run --locked $(FEATURES) -E 'not $(REAL)'
	cargo test --locked $(FEATURES) --doc

.PHONY: real
real: ## tests on the real libvirt with VMs of their own
	$(REAL_ENV) cargo nextest run --locked $(FEATURES) -E '$(REAL)'

.PHONY: bench
bench: ## benchmarks (docs/PERFORMANCE.md tells how to read them)
	cargo bench --locked --workspace

.PHONY: audit
audit: ## known security advisories against the dependencies (needs the open network)
	scripts/install-deps.sh test
	cargo deny --locked check advisories

.PHONY: clean-lab
clean-lab: ## remove every VM that a demo, a test or `cargo xtask lab` left behind
	cargo build --locked -p xtask
	$(SUDO) "$(DEBUG)/xtask" lab down --all
