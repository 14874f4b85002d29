# `make` or `make help` lists the targets.
#
# Each target makes the virtual environment that it needs on first use. The stamp files in it record what was
# installed: a second run installs nothing until pyproject.toml (for the peers: this file) changes.

.DEFAULT_GOAL := help
.PHONY: help demo test test-hard fuzz soak notebooks lab site bench bench-compare peers test-paddle26 clean

# `make demo PYTHON=/path/to/python3.11` uses that Python; otherwise the first of these that is 3.10, 3.11 or 3.12.
PYTHON ?= python3
ifeq ($(origin PYTHON),file)
CANDIDATES := "$(PYTHON)" python3.12 python3.11 python3.10
UV := uv
else
CANDIDATES := "$(PYTHON)"
UV :=
endif

VENV := .venv
VENV26 := .venv-paddle26
VENVPEERS := .venv-peers
PROMPT ?= a red car driving right on the ocean at sunset

PYTEST := $(VENV)/bin/python -m pytest
# Two test processes: on two cores the suite takes about half the time. A file's tests stay in one process.
BESIDE := -n 2 --dist loadfile

help:
	@echo "make demo           a video from a prompt, with the small model that ships in the package"
	@echo "make test           lint, types, layers, tests and notebooks"
	@echo "make test-hard      kills, full disks, memory limits, fuzzing, damaged files, many videos in one process"
	@echo "make fuzz           longer: 100,000 random inputs, 100 kills, 1,000 clips described; test-hard has 2,000, 20, 200"
	@echo "make soak           longer: 200 videos in one process; draws its memory into build/soak.png"
	@echo "make notebooks      executes the notebooks and saves them with their outputs"
	@echo "make lab            JupyterLab in notebooks/"
	@echo "make site           the course as web pages in build/site, from the saved outputs"
	@echo "make bench          benchmarks, compared with PyTorch after make peers; BENCH=a,vae runs some of them"
	@echo "make bench-compare  BEFORE=… AFTER=…: two result files of make bench side by side"
	@echo "make peers          installs PyTorch for the parity tests, which are skipped without it"
	@echo "make test-paddle26  parity and unit tests on paddlepaddle-gpu 2.6.2"
	@echo "make clean          removes virtual environments, build folders and caches; videos stay"

# ---------------------------------------------------------------------------------------------- environments

# stamp-venv: an empty environment with a new pip (that of Python 3.10 cannot build seqeval, which paddlenlp needs).
# stamp-cpu: the package on CPU Paddle. stamp-full: JupyterLab and the test tools as well.
%/stamp-venv:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	        echo "Making $* with $$("$$python" --version)"; \
	        "$$python" -m venv $* && $*/bin/python -m pip install --quiet --upgrade pip && touch $@ && exit 0; \
	        exit 1; \
	    fi; \
	done; \
	if [ -n "$(UV)" ] && command -v uv >/dev/null; then \
	    echo "Making $* with uv and Python 3.12"; \
	    uv venv --quiet --seed --python 3.12 $* && $*/bin/python -m pip install --quiet --upgrade pip && touch $@ && exit 0; \
	    exit 1; \
	fi; \
	echo "opensora-lite needs Python 3.10, 3.11 or 3.12; none of these is one:" $(CANDIDATES) >&2; \
	echo "With uv: install it and run make again; it downloads Python 3.12." >&2; \
	echo "With conda: conda env create -f environment.yml && conda activate opensora-lite" >&2; \
	exit 1

$(VENV)/stamp-cpu: pyproject.toml | $(VENV)/stamp-venv
	$(VENV)/bin/python -m pip install --quiet -e ".[cpu]"
	@touch $@

# This includes stamp-cpu.
$(VENV)/stamp-full: pyproject.toml | $(VENV)/stamp-venv
	$(VENV)/bin/python -m pip install --quiet -e ".[cpu,notebook,dev]"
	@touch $(VENV)/stamp-cpu $@

$(VENV26)/stamp-full: pyproject.toml | $(VENV26)/stamp-venv
	$(VENV26)/bin/python -m pip install --quiet -e ".[gpu,dev]"
	@touch $@

# PyTorch, the other side of the parity tests, in an environment of its own: it should not share a process with Paddle.
# A CPU is enough. The package index decides on the build: a CPU build takes 1 GB; the default one for Linux comes with
# CUDA, several gigabytes, which no version number can avoid (pip config can name an index with CPU builds).
$(VENVPEERS)/stamp: Makefile | $(VENVPEERS)/stamp-venv
	$(VENVPEERS)/bin/python -m pip install --quiet torch==2.13.0 "numpy>=1.24" "safetensors>=0.4" \
	    "transformers>=4.40" "sentencepiece>=0.2" "pyyaml>=6" "pydantic>=2.6" "diffusers==0.42.1"
	@touch $@

.PRECIOUS: %/stamp-venv

# --------------------------------------------------------------------------------------------------- targets

demo: $(VENV)/stamp-cpu
	$(VENV)/bin/opensora-lite generate --prompt "$(PROMPT)" --save-dir out --sample-name demo --overwrite

NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# Notebooks run even where a test failed; the last line names both results.
test: $(VENV)/stamp-full
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports
	@tests=failed; notebooks=failed; \
	$(PYTEST) $(BESIDE) tests/parity tests/unit tests/lessons tests/browser && tests=passed; \
	$(PYTEST) $(BESIDE) --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 300 \
	    $(NOTEBOOKS) && notebooks=passed; \
	echo "tests: $$tests, notebooks: $$notebooks"; \
	[ $$tests$$notebooks = passedpassed ]

test-hard: $(VENV)/stamp-full
	$(PYTEST) tests/hard

fuzz: $(VENV)/stamp-full
	OPENSORA_FUZZ=100000 OPENSORA_KILLS=100 $(PYTEST) -s \
	    tests/hard/test_fuzz.py tests/hard/test_kills.py tests/hard/test_describe_many.py

soak: $(VENV)/stamp-full
	OPENSORA_SOAK=200 $(PYTEST) tests/hard/test_soak.py -s

notebooks: $(VENV)/stamp-full
	$(VENV)/bin/python notebooks/refresh.py

# JupyterLab runs the scripts of saved outputs, figures with a slider, in notebooks that are trusted.
lab: $(VENV)/stamp-full
	@$(VENV)/bin/python -m nbformat.sign $(NOTEBOOKS) >/dev/null
	cd notebooks && ../$(VENV)/bin/python -m jupyterlab

# -E reads every page again: a page that was read before repeats none of its warnings.
site: $(VENV)/stamp-full
	$(VENV)/bin/python -m sphinx -E -W --keep-going -q -d build/doctrees -c notebooks/site notebooks build/site
	@echo "build/site/index.html"

# Result files, a plot of time against size, and what PyTorch compiled are in build/bench.
bench: $(VENV)/stamp-full
	OPENSORA_BENCH=$(BENCH) $(PYTEST) tests/benchmarks -s

bench-compare: $(VENV)/stamp-full
	@$(VENV)/bin/python tests/benchmarks/alternate.py "$(BEFORE)" "$(AFTER)"

peers: $(VENVPEERS)/stamp

# Without JupyterLab, widgets and the browser, which do not depend on Paddle.
test-paddle26: $(VENV26)/stamp-full
	$(VENV26)/bin/python -m pytest tests/parity tests/unit

clean:
	rm -rf $(VENV) $(VENV26) $(VENVPEERS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
