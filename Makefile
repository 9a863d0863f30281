# make demo        pretrain on synthetic patients, or on your scans with CT=DIR
# make report      compare pretraining sources on synthetic patients, as a check of the pipeline (CT=DIR: pretrain on your scans)
# make test        run the test suite
# make lint        check style
# Each sets up what it needs in .venv on a machine with Python 3.11 or newer.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CT     ?=
OUT    ?= $(if $(strip $(CT)),runs/demo-ct,runs/demo)
REPORT ?= $(if $(strip $(CT)),reports/demo-ct,reports/demo)
READY  := $(VENV)/.ready

.PHONY: demo report test lint install clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

install: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes and about 6 GB with CUDA the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

demo: $(READY)
ifeq ($(strip $(CT)),)
	@test -f $(OUT)-data/phantoms.jsonl || $(BIN)/voco phantom $(OUT)-data --layout folder --cases 32 --seed 0 --spacing 3 3 3
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		pretrain/run.py --config demo --data.root $(OUT)-data --out $(OUT)
else
	@$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		pretrain/run.py --config demo --data.root "$(CT)" --out $(OUT)
endif

report: $(READY)
	@$(BIN)/python benchmarks/sources.py --config benchmarks/configs/demo.yaml --out $(REPORT) \
		$(if $(strip $(CT)),--data unlabeled="$(CT)")

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
