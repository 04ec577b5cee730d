# `make setup` installs what the commands and the demo need, `make develop` all that the tests need, both into .venv, by uv
# (installed into .venv where there is none: it takes a third of pip's time) or by pip where that fails; the other targets
# set it up first where that is needed. Of the packages only what commands import is compiled here, the rest at its first
# import: all of it takes half a minute longer.

VENV := .venv
RUN := $(VENV)/bin/python
# for two cores: one more, since some tests wait for a server, a browser or a process
JOBS ?= 3
DEMO := results/demo
DEMO_ROWS := faster_rcnn_resnet14_slim_fpn.demo faster_rcnn_vovnet27_tiny_fpn.demo
REAL := ssdlite_mobilenetv2_300.registry
# one thread an operator, so that several test processes share a machine; more, where a test needs them, sleep while they wait
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# glibc keeps more of the memory that is freed, so that the kernel clears fewer pages
KEPT_MEMORY := GLIBC_TUNABLES=glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=268435456:glibc.malloc.top_pad=16777216

# pip's settings, in uv's names
SETTINGS_FOR_UV := -e "s/^[^=]*\.index-url=/export UV_INDEX_URL=/p" -e "s/^[^=]*\.extra-index-url=/export UV_EXTRA_INDEX_URL=/p" \
  -e "s/^[^=]*\.find-links=/export UV_FIND_LINKS=/p" -e "s/^[^=]*\.constraint=/export UV_CONSTRAINT=/p" \
  -e "s/^[^=]*\.cert=/export SSL_CERT_FILE=/p"

.PHONY: setup develop demo test gpu browser report docs lint clean

setup: $(if $(wildcard $(VENV)/ready),$(VENV)/ready,$(VENV)/demo)

develop: $(VENV)/ready

$(VENV)/demo: EXTRAS := demo
$(VENV)/ready: EXTRAS := test
$(VENV)/ready: MORE := , torchvision, torch.distributed

$(VENV)/demo $(VENV)/ready: pyproject.toml
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	  test -x $(RUN) || uv venv --python ">=3.11" $(VENV); \
	  uv pip install --python $(RUN) -e ".[$(EXTRAS)]"; \
	else \
	  if ! test -x $(RUN); then \
	    for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	      if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then echo "setup: no Python 3.11 or newer found; install one, or say where it is: make setup PYTHON=..." >&2; exit 1; fi; \
	    "$$found" -m venv $(VENV); \
	  fi; \
	  { $(RUN) -m pip install --quiet --disable-pip-version-check uv && eval "$$($(RUN) -m pip config list | sed -n $(SETTINGS_FOR_UV))" \
	    && UV_INDEX_STRATEGY=unsafe-best-match $(RUN) -m uv pip install --python $(RUN) -e ".[$(EXTRAS)]"; } \
	  || $(RUN) -m pip install --no-compile -e ".[$(EXTRAS)]"; \
	fi
	@export PYTHONDONTWRITEBYTECODE=; { $(RUN) -c 'import numba, sympy'; $(RUN) -m compileall -q benchmarks kernels zoo; } & \
	$(RUN) -c 'import detection_zoo.bench, detection_zoo.zoo.build$(MORE)' && wait
	@touch $@

# two slim detectors that come with the project, head to head on the validation images of `shapes`; then a real detector
demo: setup
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@$(ONE_THREAD) $(RUN) bench.py run $(DEMO_ROWS) --data shapes --device cpu --metrics inference,ap,memory,epoch --images 100 --timed-images 30 --budget-s 10 --warm-up-s 4 --processes 2 \
	  --train-steps 12 --check --store $(DEMO)/runs --again > $(DEMO)/measurements.txt
	@$(RUN) bench.py table demo --measured --store $(DEMO)/runs --out $(DEMO)/table.md
	@$(ONE_THREAD) $(RUN) bench.py compare $(DEMO_ROWS) --data shapes --ap --device cpu --images 100 --timed-images 30 --blocks 4 --budget-s 30 \
	  --store $(DEMO)/comparisons | tee $(DEMO)/comparison.txt
	@shapes=$$($(RUN) -c 'from detection_zoo.zoo.data.shapes import make_shapes; print(make_shapes() / "val")'); \
	$(RUN) bench.py detect $(firstword $(DEMO_ROWS)) "$$shapes/00000[1-6].jpg" --out $(DEMO)/shapes --device cpu
	@pictures=$$($(RUN) -c 'import pathlib, skimage; print(*(pathlib.Path(skimage.__file__).parent / "data" / f"{n}.png" for n in ("astronaut", "chelsea", "coffee")))'); \
	if $(RUN) download_weights.py get $(REAL) >/dev/null; then $(RUN) bench.py detect $(REAL) $$pictures --out $(DEMO)/pictures --device cpu; \
	else echo "demo: no real detector, because npm or its registry cannot be reached; the rest is not touched by that" >&2; fi
	@echo "written: $(DEMO)/table.md (the table), $(DEMO)/comparison.txt (the verdicts), $(DEMO)/shapes and $(DEMO)/pictures (detections), $(DEMO)/measurements.txt (every number), $(DEMO)/runs (the records)" >&2

# each process starts with neighbouring files, so that what a file's tests share is made once, and takes over
# some of another's when it has none left; compiled files are kept, since some hundred commands are started
test: develop browser
	$(ONE_THREAD) $(KEPT_MEMORY) PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest -n $(JOBS) --dist worksteal

# all that a GPU shows within ten minutes: tests, kernels, detectors beside torchvision, training, a comparison; results/local/gpu
gpu: develop
	$(RUN) tests/gpu_session.py

# the page is tested in Chromium; where none can be had, those tests are skipped and say so
browser:
	@if $(RUN) -c 'import sys; sys.path.insert(0, "tests"); from browser import find_browser; sys.exit(find_browser() is None)' 2>/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "browser: installing Debian's chromium for the tests of the page" >&2; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 \
	    || echo "browser: apt-get could not install chromium; the tests of the page will be skipped" >&2; \
	else echo "browser: no Chromium here, and no root to install one; the tests of the page will be skipped (DETECTION_ZOO_BROWSER names one elsewhere)" >&2; fi

# tables, figures, the page and the documents' blocks, from the tracked records and the manifests
report: develop
	$(RUN) bench.py report --store results/runs --out results

# the pages of docs/ with the API of the docstrings, as a site in build/site
docs: develop
	$(RUN) -m mkdocs build --strict --site-dir build/site

lint: develop
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) bench.py report --check

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
