# Everything is installed into the clone (.venv, about 1 GB). What tests and the demo fetch or build is kept in
# ${XDG_CACHE_HOME:-~/.cache}/triton-controlplane.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin
# Test processes side by side. Tests wait more than they compute, but a machine that is too busy makes them slow.
WORKERS ?= 4

.PHONY: help install lint test e2e-kubernetes demo bench clean

help:
	@echo "make demo   show the main job on real models (a minute or two)"
	@echo "make test   run every test"
	@echo "make e2e-kubernetes  run it on a real Kubernetes node, as root (a quarter of an hour the first time)"
	@echo "make lint   check style, types and the floors of the house"
	@echo "make bench  measure what docs/benchmarks.md states"
	@echo "make clean  remove what the targets above installed and made"

install: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.11 or 3.12 is needed; set it with make PYTHON=/path/to/python3.11"; exit 1; }
	@# An installation that was interrupted may lack anything: it is begun anew.
	@test -e $@ || rm -rf $(VENV)
	@rm -f $@
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(RUN)/python -m pip install -q --disable-pip-version-check uv
	@$(RUN)/uv pip install -q --python $(RUN)/python -r requirements/dev.txt
	@$(RUN)/uv pip install -q --python $(RUN)/python --no-deps -e .
	@touch $@

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/deptry .

test: install
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

e2e-kubernetes: install
	@tests/kubernetes/install.sh
	E2E_KUBERNETES=1 $(RUN)/python -m pytest tests/kubernetes/e2e

demo: install
	@$(RUN)/python -m examples.demo

bench: install
	$(RUN)/python -m benchmarks

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The pinned lists, made anew from the open ranges of pyproject.toml. They record no download addresses.
PIN := $(RUN)/uv pip compile pyproject.toml --python-version 3.11 --no-emit-index-url --no-annotate --no-header -q

.PHONY: pins
pins:
	$(PIN) --extra local --group dev -o requirements/dev.txt
	$(PIN) --extra local -c requirements/dev.txt -o requirements/local.txt
	$(PIN) --extra agent -c requirements/dev.txt -o requirements/agent.txt
	$(PIN) --extra controller -c requirements/dev.txt -o requirements/controller.txt
	$(PIN) --extra gateway -c requirements/dev.txt -o requirements/gateway.txt
	$(PIN) --extra cli -c requirements/dev.txt -o requirements/cli.txt
