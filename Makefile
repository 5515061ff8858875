# Every target sets itself up: the first one makes .venv and installs the project with its extras.
#   make demo    compile for this machine, run on a photograph, write a report
#   make train   train small networks, plain and deformable, on digits, write a report; again to go on
#   make test    the whole test suite
#   make check   format, lint, types, and that no kernel executes more instructions than it did
#   make bench   every op against its peers; make bench-readme, the README's tables of the results that are kept
#   make gpu     all that needs a CUDA device, in $(OUT); again to go on. It sets nothing up: $(PYTHON) has torch
#   make gpu-carry SITE=folder   pack what a machine with a device and without network lacks; there, make gpu SITE=folder
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); \
                  [ $$n -gt 4 ] && echo 4 || echo $$n)
ARGS   ?=
OUT    ?= gpu-results
MINUTES ?= 9.5
SITE   ?=

.PHONY: demo train test check bench bench-readme gpu gpu-carry clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python >= 3.10 or say 'make PYTHON=/path/to/python'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python >= 3.10 is required, $(PYTHON) is $$($(PYTHON) -V 2>&1): say 'make PYTHON=python3.12'" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo "python -m venv failed: on Debian and Ubuntu 'apt-get install python3-venv'" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m dcn_tvm demo $(ARGS)

train: $(READY)
	$(BIN)/python -m dcn_tvm train $(ARGS)

# Workers share the cores: one thread each, or the OpenMP pools of several workers fight.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m dcn_tvm guard --if-possible

bench: $(READY)
	$(BIN)/python -m dcn_tvm bench $(ARGS)

bench-readme: $(READY)
	$(BIN)/python -m dcn_tvm.bench.readme README.md benchmarks/results

gpu:
	@$(PYTHON) -c 'import torch' || { echo "$(PYTHON) has no torch: say 'make gpu PYTHON=/path/to/python'" >&2; exit 2; }
	@if [ -n "$(SITE)" ]; then exports=$$($(PYTHON) "$(SITE)/unpack.py") || exit 2; eval "$$exports"; fi; \
	PYTHONPATH="$${PYTHONPATH:+$$PYTHONPATH:}$(CURDIR)" $(PYTHON) -m dcn_tvm gpu --out "$(OUT)" --minutes $(MINUTES) $(ARGS)

gpu-carry: $(READY)
	@[ -n "$(SITE)" ] || { echo "say where to: make gpu-carry SITE=folder" >&2; exit 2; }
	$(BIN)/python -m dcn_tvm gpu carry "$(SITE)" $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
