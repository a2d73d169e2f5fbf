# SPDX-License-Identifier: Apache-2.0
# A thin front of verbs; the build itself is meson.build, the packages are packages/debian-12.txt and requirements.txt.
# VENV and BUILD may be set to other folders, so that several builds of one tree live side by side:
#   make VENV=/tmp/a/venv BUILD=/tmp/a/build test
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BUILD ?= build
PYTHON := /usr/bin/python3
TESTS ?=
export VENV BUILD ONLY
export PATH := $(abspath $(VENV))/bin:$(PATH):/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export HYPOTHESIS_STORAGE_DIRECTORY := $(abspath $(BUILD))/hypothesis
unexport PYTHONPATH PYTHONHOME

# Folders are listed too: their time changes when a file is added or removed.
SOURCES := $(shell find c ebpf pipeline vm-images -name __pycache__ -prune -o -print) \
	meson.build meson_options.txt pyproject.toml

# $(call logged,NAME,COMMAND): run COMMAND; its output is shown only if it fails, and kept in BUILD/NAME.log
logged = mkdir -p $(BUILD) && { $(2) >$(BUILD)/$(1).log 2>&1 || { \
	cat $(BUILD)/$(1).log; echo "make: $(1) failed (the log above is $(BUILD)/$(1).log)"; false; }; }

.PHONY: help deps deps-test deps-bench deps-vm venv build install test demo demo-vm bench bench-disruption verify lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install missing Debian packages (build, run, test)
	@packages/install build run test

deps-test:
	@packages/install build run test vm verify

deps-vm:
	@packages/install build run vm

deps-bench:
	@packages/install build run test bench

venv: deps $(VENV)/.packages ## make the Python environment, pinned

$(VENV)/.packages: requirements.txt | deps
	@echo "  VENV    $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(call logged,venv,$(VENV)/bin/python -m pip install -q -r requirements.txt)
	@touch $@

build: deps $(BUILD)/.built ## compile C, BPF object and extension, make the wheel

$(BUILD)/.built: $(VENV)/.packages $(SOURCES) | deps
	@echo "  BUILD   $(BUILD)"
	@mkdir -p $(BUILD) && touch $@.start
	@rm -rf $(BUILD)/wheel
	@$(call logged,build,$(VENV)/bin/python -m pip wheel --no-deps --no-build-isolation \
		--config-settings=build-dir=$(BUILD)/meson --wheel-dir $(BUILD)/wheel .)
	@mv $@.start $@

install: deps $(BUILD)/.installed ## put swarmline into the environment

$(BUILD)/.installed: $(BUILD)/.built
	@echo "  INSTALL $(VENV)"
	@$(call logged,install,$(VENV)/bin/python -m pip install -q --no-deps --force-reinstall $(BUILD)/wheel/*.whl)
	@touch $@

test: deps-test install ## run every test that this machine can run (TESTS=path or pytest options)
	@echo "  TEST    C unit tests"
	@c=0; $(call logged,ctest,$(VENV)/bin/meson test -C $(BUILD)/meson --print-errorlogs --timeout-multiplier 4) || c=1; \
	sed -En 's/^(No tests defined|(Ok|Fail|Skipped|Timeout): +[0-9]+).*/          \1/p' $(BUILD)/ctest.log; \
	$(MAKE) sanitized || c=1; \
	echo "  TEST    proofs of edge and vhost, short forms"; \
	tests/verify --ci --out $(abspath $(BUILD))/verify || c=1; \
	echo "  TEST    pytest"; \
	$(VENV)/bin/pytest -rs -o cache_dir=$(abspath $(BUILD))/pytest $(TESTS) </dev/null && exit $$c

demo: install ## a lab, a swarm, a real client: the whole thing in a minute
	@tools/demo

demo-vm: deps-vm install ## the same with every instance in a virtual machine of its own
	@$(VENV)/bin/swarmline images build
	@tools/demo --vm

bench: deps-bench install ## compare with peers (ONLY=prefix selects)
	@$(VENV)/bin/python tools/bench

bench-disruption: deps-bench install ## disturb a swarm, nginx and HAProxy under load (tools/bench-disruption --help)
	@$(VENV)/bin/python tools/bench-disruption --out $(BUILD)/disruption.json

.PHONY: sanitized
sanitized: $(BUILD)/.installed
	@echo "  TEST    C unit tests with address and undefined behaviour sanitizers"
	@if [ ! -f $(BUILD)/sanitized/build.ninja ]; then $(call logged,sanitized-setup,$(VENV)/bin/meson setup \
		-Dsanitize=address$(comma)undefined -Dbuildtype=debugoptimized $(BUILD)/sanitized); fi
	@$(call logged,sanitized,$(VENV)/bin/meson test -C $(BUILD)/sanitized --print-errorlogs --timeout-multiplier 5)

verify: deps-test install sanitized ## the long proofs: models, stress, fuzzers, and tests with ever new examples
	@echo "  VERIFY  property tests, with new examples"
	@$(call logged,explore,HYPOTHESIS_PROFILE=explore $(VENV)/bin/pytest -q --timeout=900 \
		-o cache_dir=$(abspath $(BUILD))/pytest tests/unit)
	@echo "  VERIFY  proofs of edge and vhost"
	@tests/verify --out $(abspath $(BUILD))/verify

lint: venv ## ruff, mypy --strict, clang-format if there is one
	@mkdir -p $(BUILD); bad=0; \
	scripts=$$(grep -lE '^#!.*python' tools/* || true); \
	$(VENV)/bin/ruff check --cache-dir $(BUILD)/ruff --quiet --output-format=concise . $$scripts || bad=1; \
	$(VENV)/bin/mypy --cache-dir $(BUILD)/mypy --no-error-summary || bad=1; \
	if command -v clang-format >/dev/null; then \
		find c ebpf tests/c -name '*.[ch]' -print0 | xargs -0r clang-format --dry-run --Werror || bad=1; \
	else echo "  LINT    no clang-format: the format of C was not checked"; fi; \
	exit $$bad

clean: ## remove what was built, the Python environment too
	@rm -rf $(BUILD) $(VENV)

comma := ,
