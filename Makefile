# `make demo` and `make test` need nothing but Python: each sets up what it lacks in .venv, once.

# The first of these that will do is used; choose another by `make PYTHON=/path/to/python test`.
PYTHON ?= python3 python3.13 python3.12 python3.11
VENV ?= .venv
# The browser tests use the chromium of the system, else the one that Playwright downloads.
FIND_CHROMIUM := command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
# One torch build for everybody, installed before any package can ask for another.
TORCH ?= torch==2.13.0
# What `make bench` measures, all if empty: `make bench ROWS='rename cast'`.
ROWS ?=
# What `make test-only` runs, and how: `make test-only ARGS='tests/null -x'`.
ARGS ?= -n 2
# How `make fuzz` goes: `make fuzz FUZZ='--cases 1000000 --seed 7'`.
FUZZ ?= --cases 20000 --seed 1
# How `make fuzz-files` goes: `make fuzz-files FUZZ_FILES='safetensors npz --seconds 600'`.
FUZZ_FILES ?= --seconds 60
# How `make soak` goes.
SOAK ?= --minutes 20
# How `make faults` goes: `make faults FAULTS='--kills 200 --every 1'`.
FAULTS ?= --kills 20 --every 5

BIN := $(VENV)/bin
# Versions that are known to work together, one file a Python version; a Python without a file gets the newest of all.
CONSTRAINTS ?= constraints/python$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
# The Pythons for which `make constraints` writes a file.
CONSTRAINED ?= python3.11 python3.12 python3.13
# Errors alone are shown. A constraints file that is not there constrains nothing.
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check $(addprefix --constraint=,$(wildcard $(CONSTRAINTS)))
SETUP := pyproject.toml setup.py brainsurgery_jax/version.py $(wildcard constraints/*.txt)

# pyright comes whole from its wheel; this keeps it from asking the network for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# The libraries whose models judge our layouts want Python 3.12 and environments of their own. DeepMind's gemma and
# MaxText are installed without what their training needs.
PYTHON312 ?= python3.12
TUNIX := google-tunix==0.1.7
GEMMA := gemma==4.0.1 kauldron==1.4.4
GEMMA_NEEDS := chex dialog einops etils[epath,epy] immutabledict lark mediapy tensorboard tensorflow typeguard
MERGEKIT := mergekit==0.1.5
TPU := jax[tpu]==0.10.2
MAXTEXT := maxtext==0.2.5
MAXTEXT_NEEDS := jax==0.12.0.1 flax==0.12.12 orbax-checkpoint==0.12.8 aqtp drjax grain huggingface_hub jinja2 \
    jsonlines omegaconf packaging pathwaysutils pillow psutil pydantic qwix safetensors sentencepiece sympy tiktoken \
    tokamax tqdm transformers

.PHONY: help demo test lint audit types test-only test-newest test-oldest constraints hashes sbom fuzz fuzz-files soak faults behaviour mergekit object-store tpu format bench schema docs site screenshots venv clean

help:
	@echo 'make demo       install into $(VENV) and run the worked example'
	@echo 'make test       lint, types and all tests, as CI runs them'
	@echo 'make lint       ruff check, ruff format --check'
	@echo 'make types      pyright'
	@echo 'make test-only  the tests alone; ARGS="tests/null -x" chooses'
	@echo 'make test-newest  all tests with the newest versions of all that is installed, in .venv-newest'
	@echo 'make test-oldest  the tests with the oldest versions that pyproject.toml allows, in .venv-oldest'
	@echo 'make constraints  write constraints/, the versions that `make test` installs, one file a Python'
	@echo 'make hashes     write constraints/hashes/, what the package needs of these, with the hashes of all files'
	@echo 'make sbom       write build/sbom.json, the bill of materials (CycloneDX)'
	@echo 'make fuzz       load and check random plans; FUZZ="--cases 1000000 --seed 7" chooses'
	@echo 'make fuzz-files damage files of every format, guided by coverage; FUZZ_FILES="npz --seconds 600" chooses'
	@echo 'make soak       random plans in one process for 20 minutes, up to four at a time; SOAK="--minutes 60" chooses'
	@echo 'make faults     kill and disturb runs in every way that we know; prints a table; FAULTS="--kills 200" chooses'
	@echo 'make behaviour  run Tunix, Gemma and MaxText on converted models; installs them, for ten minutes'
	@echo 'make object-store  read and write a bucket of a server on this machine; installs driver and server'
	@echo 'make mergekit   run mergekit beside the plans that are imported from it; installs it, for ten minutes'
	@echo 'make tpu        compile for TPUs, without one, what accelerators may compute; writes docs/accelerators.md'
	@echo 'make format     let ruff mend what it can'
	@echo 'make bench      measure beside cp, scripts and other tools, for an hour; ROWS="rename cast" chooses'
	@echo 'make schema     write the JSON Schema of plans to plans/schema.json'
	@echo 'make docs       write what is generated in docs/ and README.md: the ops, what the examples and the notebooks give'
	@echo 'make site       build the documentation as a site in build/site; broken links fail'
	@echo 'make audit      audit every plan of plans/, and write the tables of docs/audit.md; some minutes'
	@echo 'make screenshots  take the pictures of docs/web.md from the browser tests'
	@echo 'make venv       only set up $(VENV) for development'
	@echo 'make clean      remove $(VENV), caches and builds'

demo: $(VENV)/installed
	$(BIN)/brainsurgery-jax demo
	@echo; echo "The command is $(BIN)/brainsurgery-jax; activate the environment to call it by its name: . $(BIN)/activate"

test: lint types test-only

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

test-only: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-oldest:
	@mkdir -p build
	python3 tools/lower_bounds.py > build/oldest.txt
	$(MAKE) test-only VENV=.venv-oldest CONSTRAINTS=build/oldest.txt TORCH=torch

# An environment for each Python, with the newest of all; what it holds then, but for us and for builds of one machine.
constraints: $(CONSTRAINED:%=constraints-of-%)

constraints-of-%:
	$(MAKE) venv VENV=.venv-newest-$* PYTHON=$* CONSTRAINTS=
	@(echo "# The versions that make test installs with Python $(subst python,,$*). Written by make constraints."; \
	    .venv-newest-$*/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+[^+]*$$//') > constraints/$*.txt

# uv knows the hashes of all files of a version, for every system; it lives in an environment of its own.
hashes: $(CONSTRAINED:%=hashes-of-%)

hashes-of-%: | .venv-uv/installed
	@mkdir -p constraints/hashes
	@(echo "# What the package needs of constraints/$*.txt, with the hashes of all files. Written by make hashes."; \
	    .venv-uv/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version $(subst python,,$*) \
	    --constraint constraints/$*.txt pyproject.toml) > build/hashes.txt
	@mv build/hashes.txt constraints/hashes/$*.txt

sbom: $(VENV)/installed
	@mkdir -p build
	$(BIN)/python tools/sbom.py > build/sbom.json.new
	mv build/sbom.json.new build/sbom.json

fuzz: $(VENV)/installed-dev
	$(BIN)/python -m tests.fuzz_plans $(FUZZ)

fuzz-files: $(VENV)/installed-fuzz
	$(BIN)/python -m tests.fuzz.campaign $(FUZZ_FILES)

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.soak.soak $(SOAK)

faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.campaign $(FAULTS)

behaviour: $(VENV)/installed-dev .venv-tunix/installed .venv-maxtext/installed
	$(BIN)/python -m pytest -rP tests/behaviour/with_models.py

object-store: .venv-object-store/installed
	.venv-object-store/bin/python -m pytest -q --noconftest tests/behaviour/with_object_store.py

mergekit: $(VENV)/installed-dev .venv-mergekit/installed
	$(BIN)/python -m pytest -rP tests/behaviour/with_mergekit.py tests/behaviour/with_merge_methods.py

tpu: .venv-tpu/installed
	.venv-tpu/bin/python -m tools.tpu docs/accelerators.md

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/all.py $(ROWS)

schema: $(VENV)/installed
	@mkdir -p plans
	$(BIN)/brainsurgery-jax schema > plans/schema.json.new
	mv plans/schema.json.new plans/schema.json

docs: $(VENV)/installed-dev
	$(BIN)/python -m tests.docs.write
	$(BIN)/python -m tests.docs.notebooks

site: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'open build/site/index.html'

audit: $(VENV)/installed-dev
	$(BIN)/python -m tests.auditing.write

screenshots: $(VENV)/installed-dev
	@mkdir -p docs/web
	BRAINSURGERY_SCREENSHOTS=docs/web $(BIN)/python -m pytest -n 0 -q tests/web/test_story.py tests/web/test_looking.py tests/web/test_editing.py

venv: $(VENV)/installed-dev

clean:
	rm -rf $(VENV) .venv-newest* .venv-oldest .venv-tunix .venv-maxtext .venv-mergekit .venv-object-store .venv-tpu .venv-uv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate must run, be new enough, and be able to make an environment (Debian packs that part by itself).
$(BIN)/python:
	@for python in $(PYTHON); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv "$(VENV)" && exit 0; \
	    rm -rf "$(VENV)"; exit 1; \
	done; \
	echo 'make: no usable Python found: 3.11 or later with its venv module is needed (tried: $(PYTHON)).' >&2; \
	echo 'Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python' >&2; \
	exit 1

$(VENV)/installed: $(SETUP) | $(BIN)/python
	@echo 'installing brainsurgery-jax into $(VENV); the first time takes a minute or two'
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(SETUP) | $(BIN)/python
	@echo 'installing brainsurgery-jax and what its tests need into $(VENV); the first time takes some minutes'
	@$(PIP) '$(TORCH)'
	@$(PIP) --editable '.[torch,test,dev,docs]'
	@$(FIND_CHROMIUM) || $(BIN)/python -m playwright install chromium >/dev/null 2>&1 || \
	    echo 'make: no chromium, so the browser tests will be skipped. Debian, Ubuntu: apt-get install chromium' >&2
	@touch $(VENV)/installed $@

$(VENV)/installed-bench: $(VENV)/installed-dev
	@$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/installed-fuzz: $(VENV)/installed-dev
	@$(PIP) --editable '.[fuzz]'
	@touch $@

.venv-uv/installed: | $(BIN)/python
	@mkdir -p build
	@$(BIN)/python -m venv .venv-uv
	@.venv-uv/bin/python -m pip install -qq uv
	@touch $@

.venv-tunix/installed:
	@echo 'installing $(TUNIX) and $(GEMMA) into .venv-tunix; that takes some minutes'
	@$(PYTHON312) -m venv .venv-tunix
	@.venv-tunix/bin/python -m pip install -qq --upgrade pip
	@.venv-tunix/bin/python -m pip install -qq $(TUNIX)
	@.venv-tunix/bin/python -m pip install -qq $(GEMMA_NEEDS)
	@.venv-tunix/bin/python -m pip install -qq --no-deps $(GEMMA)
	@touch $@

# By uv, for pip seeks minutes for the versions that driver and server agree on.
.venv-object-store/installed: | $(BIN)/python .venv-uv/installed
	@$(BIN)/python -m venv .venv-object-store
	@.venv-uv/bin/uv pip install --quiet --python .venv-object-store/bin/python --editable '.[remote]' pytest boto3 flask flask-cors 's3fs>=2025.3' 'moto[s3]>=5.1'
	@touch $@

.venv-mergekit/installed: | $(BIN)/python
	@echo 'installing $(MERGEKIT) into .venv-mergekit; that takes some minutes'
	@$(BIN)/python -m venv .venv-mergekit
	@.venv-mergekit/bin/python -m pip install -qq '$(TORCH)' $(MERGEKIT)
	@touch $@

# The compiler for TPUs registers itself in every process of its environment, so it has one of its own.
.venv-tpu/installed: $(SETUP) | $(BIN)/python
	@echo 'installing $(TPU) into .venv-tpu; that takes some minutes'
	@$(BIN)/python -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip install -qq --upgrade pip
	@.venv-tpu/bin/python -m pip install -qq '$(TPU)' --editable .
	@touch $@

.venv-maxtext/installed:
	@echo 'installing $(MAXTEXT) into .venv-maxtext; that takes some minutes'
	@$(PYTHON312) -m venv .venv-maxtext
	@.venv-maxtext/bin/python -m pip install -qq --upgrade pip
	@.venv-maxtext/bin/python -m pip install -qq $(MAXTEXT_NEEDS)
	@.venv-maxtext/bin/python -m pip install -qq --no-deps $(MAXTEXT)
	@touch $@
