# make demo | test | fuzz | soak | notebooks | lab | site | bench | bench-compare | peers | test-paddle26 | clean
#
# Each target makes the virtual environment that it needs on first use. The stamp files inside remember what was
# installed, so a second run installs nothing until pyproject.toml (for the peers: this file) changes.

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz soak notebooks lab site bench bench-compare peers test-paddle26 clean

# `make demo PYTHON=/path/to/python3.11` tries that one alone; otherwise the first of these that is 3.10, 3.11 or 3.12.
PYTHON ?= python3
ifeq ($(origin PYTHON),file)
CANDIDATES := "$(PYTHON)" python3.12 python3.11 python3.10
else
CANDIDATES := "$(PYTHON)"
endif

VENV := .venv
VENV26 := .venv-paddle26
VENVPEERS := .venv-peers
PROMPT ?= a red car driving right on the ocean at sunset

help:
	@echo "make demo           a prompt becomes a video, with the small model that ships in the package"
	@echo "make test           lint, types, tests and notebooks"
	@echo "make fuzz           100,000 cases of any text at all, and 100 killed runs, where make test has 2,000 and 20"
	@echo "make soak           200 videos in one process; its memory as build/soak.png"
	@echo "make notebooks      executes the notebooks and writes them back with their outputs"
	@echo "make lab            JupyterLab in notebooks/"
	@echo "make site           the course as pages, in build/site; of the outputs that are committed"
	@echo "make bench          the benchmarks, beside PyTorch where make peers has been run; BENCH=a,vae chooses among them"
	@echo "make bench-compare  BEFORE=… AFTER=…, two result files of make bench, side by side"
	@echo "make peers          installs PyTorch, for the tests that compare Paddle with it; without it they are skipped"
	@echo "make test-paddle26  the tests, without the notebooks, on paddlepaddle-gpu 2.6.2"
	@echo "make clean          removes the virtual environments, build folders and caches; videos stay"

# ---------------------------------------------------------------------------------------------- environments

# stamp-venv: an environment with nothing but a new pip (the one of Python 3.10 cannot build seqeval, which paddlenlp
# needs). stamp-cpu: the package on CPU Paddle. stamp-full: with JupyterLab and test tools.
%/stamp-venv:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	        echo "Making $* with $$("$$python" --version)"; \
	        "$$python" -m venv $* && $*/bin/python -m pip install --quiet --upgrade pip && touch $@ && exit 0; \
	        exit 1; \
	    fi; \
	done; \
	echo "opensora-lite needs Python 3.10, 3.11 or 3.12, and none of these is one:" $(CANDIDATES) >&2; \
	echo "Install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(VENV)/stamp-cpu: pyproject.toml | $(VENV)/stamp-venv
	$(VENV)/bin/python -m pip install --quiet -e ".[cpu]"
	@touch $@

# touches stamp-cpu as well: what it installed includes that
$(VENV)/stamp-full: pyproject.toml | $(VENV)/stamp-venv
	$(VENV)/bin/python -m pip install --quiet -e ".[cpu,notebook,dev]"
	@touch $(VENV)/stamp-cpu $@

$(VENV26)/stamp-full: pyproject.toml | $(VENV26)/stamp-venv
	$(VENV26)/bin/python -m pip install --quiet -e ".[gpu,dev]"
	@touch $@

# The other side of the parity tests, away from Paddle: the two should not share a process. A CPU is all that they use.
# The package index decides which build this is. A CPU build takes 1 GB of disk; elsewhere the one for Linux comes with
# CUDA, several gigabytes, which no version number can decline (pip config can name an index that has CPU builds).
$(VENVPEERS)/stamp: Makefile | $(VENVPEERS)/stamp-venv
	$(VENVPEERS)/bin/python -m pip install --quiet torch==2.13.0 "numpy>=1.24" "safetensors>=0.4" \
	    "transformers>=4.40" "sentencepiece>=0.2" "pyyaml>=6" "diffusers==0.42.1"
	@touch $@

.PRECIOUS: %/stamp-venv

# --------------------------------------------------------------------------------------------------- targets

# The command's last line says where the video is.
demo: $(VENV)/stamp-cpu
	$(VENV)/bin/opensora-lite generate --prompt "$(PROMPT)" --save-dir out --sample-name demo --overwrite

# tests/benchmarks belongs to `make bench`; NOTEBOOKS is empty until there are some, and nbval is not called then.
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
test: $(VENV)/stamp-full
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m pytest --ignore=tests/benchmarks
ifneq ($(NOTEBOOKS),)
	$(VENV)/bin/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	    --nbval-cell-timeout 300 $(NOTEBOOKS)
endif

fuzz: $(VENV)/stamp-full
	OPENSORA_FUZZ=100000 OPENSORA_KILLS=100 $(VENV)/bin/python -m pytest tests/test_fuzz.py tests/test_hard_kills.py -s

soak: $(VENV)/stamp-full
	OPENSORA_SOAK=200 $(VENV)/bin/python -m pytest tests/test_soak.py -s

notebooks: $(VENV)/stamp-full
	$(VENV)/bin/python notebooks/refresh.py

lab: $(VENV)/stamp-full
	cd notebooks && ../$(VENV)/bin/python -m jupyterlab

# -E reads everything again, for a page that was read before gives no warning again.
site: $(VENV)/stamp-full
	$(VENV)/bin/python -m sphinx -E -W --keep-going -q -d build/doctrees -c notebooks/site notebooks build/site
	@echo "build/site/index.html"

# Result files, the growth of time as a picture, and what PyTorch compiled, are in build/bench.
bench: $(VENV)/stamp-full
	OPENSORA_BENCH=$(BENCH) $(VENV)/bin/python -m pytest tests/benchmarks -s

bench-compare: $(VENV)/stamp-full
	@$(VENV)/bin/python tests/benchmarks/alternate.py "$(BEFORE)" "$(AFTER)"

peers: $(VENVPEERS)/stamp

# Without JupyterLab and the browser, which are the same on every Paddle.
test-paddle26: $(VENV26)/stamp-full
	$(VENV26)/bin/python -m pytest --ignore=tests/benchmarks --ignore=tests/notebooks --ignore=tests/browser

clean:
	rm -rf $(VENV) $(VENV26) $(VENVPEERS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
