# setup makes .venv (with uv where it is installed, with pip otherwise); the other targets set it up first where that is needed.

VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= 2
DEMO := results/demo
# one thread an operator, so that several test processes share a machine
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo test lint clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	  test -x $(RUN) || uv venv --python ">=3.11" $(VENV); \
	  uv pip install --compile-bytecode --python $(RUN) -e ".[test]"; \
	else \
	  if ! test -x $(RUN); then \
	    for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	      if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then echo "setup: no Python 3.11 or newer found; install one, or say where it is: make setup PYTHON=..." >&2; exit 1; fi; \
	    "$$found" -m venv $(VENV); \
	  fi; \
	  $(RUN) -m pip install --quiet --upgrade pip; \
	  $(RUN) -m pip install -e ".[test]"; \
	fi
	@touch $@

demo: setup
	@mkdir -p $(DEMO)
	@$(RUN) bench.py run demo --data shapes --device cpu --images 40 --timed-images 20 --budget-s 20 --warm-up-s 10 --train-steps 20 \
	  --store $(DEMO)/runs --again > $(DEMO)/measurements.txt
	@$(RUN) bench.py table demo --store $(DEMO)/runs --out $(DEMO)/table.md
	@echo "written: $(DEMO)/table.md (the table), $(DEMO)/measurements.txt (every number), $(DEMO)/runs (the records)" >&2

test: setup
	$(ONE_THREAD) $(RUN) -m pytest -n $(JOBS)

lint: setup
	$(RUN) -m ruff check .

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
