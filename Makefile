# Every target does its own set-up; nothing has to be run before it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KAFKA  ?=

.PHONY: help setup run test lint docs kafka bench chaos occupancy clean

help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/.product: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tidegate needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[core]'
	touch $@

$(VENV)/.tests: $(VENV)/.product
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# The official JavaScript client, for the tests that use it and for the demo's page; without npm those do without
.cache/node/.installed:
	mkdir -p .cache/node
	if command -v npm >/dev/null; then \
	  npm install --prefix .cache/node --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error ably@2 && touch $@; fi

setup: $(VENV)/.product ## make .venv with the product in it

run: setup       ## the product and the leaderboard, on the embedded broker (or KAFKA=host:port, or KAFKA=local)
	$(BIN)/tidegate dev --demo $(if $(KAFKA),--kafka $(KAFKA)) $(ARGS)

test: $(VENV)/.tests .cache/node/.installed ## linters, types, and every test; says what it skipped and why
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -rs -n 2 $(ARGS)

lint: $(VENV)/.tests ## linters and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup      ## pages that are made from code
	$(BIN)/python -m tidegate.limits_doc > docs/limits.md

kafka: setup     ## a real Apache Kafka on 127.0.0.1:9092 (needs Java 17 and Maven), until Ctrl-C
	$(BIN)/python -m tidegate.kafka_local

bench: $(VENV)/.tests ## every benchmark beside its floor; tables here, charts in docs/bench/
	$(BIN)/python -m bench $(ARGS)

chaos: $(VENV)/.tests .cache/node/.installed ## half an hour of killed and frozen processes under SDK clients (ARGS="--minutes 3 --seed 7")
	$(BIN)/python -m tests.chaos --minutes 30 $(ARGS)

occupancy: $(VENV)/.tests ## who is on a channel, as everybody is told, while processes are killed and frozen (ARGS="--seed 7")
	$(BIN)/python -m tests.chaos.occupancy --clients 500 $(ARGS)

clean:
	rm -rf $(VENV) .cache/node .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
