# Every task of this repository. `make` alone lists them.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= dev

.DEFAULT_GOAL := help
.PHONY: help install demo test chaos lint format bench clean

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## make .venv with the product, its development tools and warm compiler caches (again: does nothing)

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PY) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, {v[0]}.{v[1]} is here: make install PY=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python bench/warm.py
	@touch $@

demo: install ## the main job, whole, in about a minute: log, simulator, worker, live view, summary
	$(BIN)/stream-dmgin demo

test: install ## all tests (those that need a real Kafka are skipped where there is no Java 17 and Maven)
	$(BIN)/python -m pytest

chaos: install ## a fault campaign against a real Kafka: make chaos [SEED=1] [MINUTES=3] [CHAOS="--kills 100 --shared ..."]
	$(BIN)/python -m tests.chaos.run --seed $(or $(SEED),1) --minutes $(or $(MINUTES),3) $(CHAOS)

lint: install ## ruff, mypy --strict, the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## the product's own measurements, one JSON document each
	@for b in fold read score latency recover; do $(BIN)/stream-dmgin bench $$b -o json || exit 1; done

clean: ## remove caches (not .venv, not data)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
