# Two commands on a fresh machine: `make demo` and `make test`. Each first makes .venv from
# requirements.lock, unless it is there already.

# The first that is new enough is taken; 3.11 leads because the lock file was resolved with it.
PYTHONS := python3.11 python3.12 python3.13 python3
# The output folder of the demo, and what else to say to pytest: make test ARGS="-k geometry -x"
OUT := demo_out
ARGS :=
# Processes that run the tests, whole files each, in the order of the folders (else the slowest come last, and one process
# waits for the other): `make test WORKERS=0` runs them one after the other in one process.
WORKERS := 2

BIN := .venv/bin
TORCH := $(shell grep '^torch==' requirements.lock)
# The stamp carries a checksum of what it was made from, so file dates (a fresh clone, another branch) do
# not matter: the same content reinstalls nothing, another content reinstalls.
STAMP := .venv/.installed-$(shell cat requirements.lock pyproject.toml | cksum | cut -d ' ' -f 1)

# Nobody else's packages, whatever the caller's shell has set up.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The shipped network as the fast engines take it: made on each machine from the weights, never kept in git.
BUNDLE := bundles/flair_abnormality_segmentation
EXPORTED := $(BUNDLE)/models/exported/manifest.json
# What the web page shows volumes with, fetched by its hash.
VIEWER := pipeline/web/static/vendor/niivue.json

.DEFAULT_GOAL := help
.PHONY: help install label demo test lint types check format environment.yml clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) $(EXPORTED) $(VIEWER) ## Create .venv from the lock file (the others do this by themselves)

demo: $(STAMP) $(EXPORTED) ## Segment the embedded sample with the shipped weights: OUT=demo_out
	$(BIN)/ar2unet demo -o $(OUT)

label: $(STAMP) ## Create .venv-label, 4 GB, for `ar2unet label` and its tests
	$(BIN)/ar2unet label --install

# A key that stands twice in a bundle's config is a mistake; MONAI would silently take one of the two.
test: export MONAI_FAIL_ON_DUPLICATE_CONFIG := 1
# The processes share the cores: each with a thread for every core would wait for the other's.
test: export OMP_NUM_THREADS := 1
test: $(STAMP) $(VIEWER) ## Run the whole test suite: ARGS="-k geometry" narrows it
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP) ## Check style and formatting (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check types (mypy, strict)
	$(BIN)/mypy

check: lint types test ## Everything that CI checks

format: $(STAMP) ## Let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

environment.yml: ## Write the pins of requirements.lock into the conda environment
	sed -n '1,/^  - pip:$$/p' $@ > $@.new
	grep -v '^#' requirements.lock | sed 's/^/      - /' >> $@.new
	mv $@.new $@

clean: ## Remove caches and the demo's output
	rm -rf $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove .venv, the exported network and the viewer as well
	rm -rf .venv .venv-label $(dir $(EXPORTED)) $(dir $(VIEWER))

# torch goes first and alone; see docs/adr/0005. The import at the end loads the heavy packages once, so that a
# package that an interrupted install left half-written is found before the stamp is set, which comes last.
$(STAMP):
	@rm -f .venv/.installed-*
	@if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	    for python in $(PYTHONS); do \
	        $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || continue; \
	        echo "creating .venv with $$python"; \
	        exec $$python -m venv .venv; \
	    done; \
	    echo "No Python >= 3.11 with its venv module found (tried: $(PYTHONS)). On Debian: apt install python3 python3-venv;" \
	        "or name one: make PYTHONS=/path/to/python" >&2; \
	    exit 1; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The .venv here is older than Python 3.11: run make distclean first.")'
	@echo "filling .venv from requirements.lock; the first time takes some minutes"
	$(BIN)/python -m pip install --quiet --no-compile $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@# What pip would do on one core, on all of them, but for the packages' own tests. It is not left to the first start:
	@# where PYTHONDONTWRITEBYTECODE is set, every start would be a first one. Some files are not meant to compile.
	$(BIN)/python -m compileall -q -j 0 -x '/tests/' .venv/lib > /dev/null 2>&1 || true
	$(BIN)/python -m pip check
	@$(BIN)/python -c 'import matplotlib.pyplot, monai.bundle, nibabel, numpy, scipy.ndimage, SimpleITK, torch, typer' \
	    || { echo "The packages do not load; an interrupted install can do that: make distclean, then again." >&2; exit 1; }
	@touch $@

$(EXPORTED): $(BUNDLE)/models/model.pt $(BUNDLE)/configs/inference.yaml pipeline/exporting.py | $(STAMP)
	$(BIN)/ar2unet export

# Without a network the rest of the product goes on.
$(VIEWER): pipeline/web/niivue.lock.json | $(STAMP)
	@$(BIN)/python -m pipeline.web.viewer && touch $@ || true
