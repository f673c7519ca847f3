# make install | demo | test | docs | clean: each does all the set-up it needs.

PYTHON ?= python3
PROMPT ?= Once upon a time
VENV := .venv
PROJECT_FILES := pyproject.toml inferlet_py/pyproject.toml .ci/install_torch.py

# Editable packages are found by a hook of the import system, which editors do not run.
define SHOW_EDITORS
import pathlib, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "pie_checkout.pth").write_text("$(CURDIR)\n")
endef
export SHOW_EDITORS

.PHONY: help install demo test docs clean

help:
	@echo 'make install            an environment in $(VENV), with the command $(VENV)/bin/pie'
	@echo 'make demo [MODEL=DIR]   runs examples/text_completion on a model'
	@echo 'make test               lint, types and tests on every Python that is installed'
	@echo 'make docs               writes docs/api.md and builds the documentation into site/'
	@echo 'make clean              removes what the others made here'
	@echo 'PYTHON=python3.12       makes the environment with another Python (after make clean)'

install: $(VENV)/.pie-installed

# A prompt that quotes itself is passed on through the environment, not through the shell's text.
demo: export PIE_DEMO_PROMPT := $(PROMPT)
demo: install
	$(VENV)/bin/pie run $(if $(MODEL),--model "$(MODEL)") examples/text_completion --prompt "$$PIE_DEMO_PROMPT"

# To install is a matter of one processor: the environments are made side by side.
test: $(VENV)/.nox-installed
	$(VENV)/bin/nox --install-only --allow-parallel --parallel=auto -s lint tests
	$(VENV)/bin/nox

docs: $(VENV)/.nox-installed
	$(VENV)/bin/nox -s docs

clean:
	rm -rf $(VENV) .nox build dist site inferlet_py/build *.egg-info inferlet_py/*.egg-info
	rm -rf .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: name one, make install PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first, and without CUDA: what depends on it would bring PyPI's build, several GB.
$(VENV)/.pie-installed: $(PROJECT_FILES) | $(VENV)/bin/python
	$(VENV)/bin/python .ci/install_torch.py
	$(VENV)/bin/python -m pip install --editable ./inferlet_py --editable .
	@$(VENV)/bin/python -c "$$SHOW_EDITORS"
	@touch $@

$(VENV)/.nox-installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install 'nox>=2026.10'
	@touch $@
