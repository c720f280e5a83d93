# make setup | demo | demo-few | test | lint | docs | docs-serve: each makes .venv when it is missing, each is safe to repeat.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup demo demo-few test lint docs docs-serve clean

setup: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/steering compare configs/clip/glyphs.yaml

demo-few: $(VENV)/.installed
	$(BIN)/steering compare configs/clip/few_drawings.yaml

# A test is single-threaded, so two cores take two at a time; a file stays with one process, as its
# fixtures are shared.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; any warning is an error. `ruff` lays out the signatures.
SITE := PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

docs: $(VENV)/.installed-dev
	$(SITE) build --quiet --strict -f docs/site/mkdocs.yml
	@echo "build/site/index.html"

docs-serve: $(VENV)/.installed-dev
	$(SITE) serve -f docs/site/mkdocs.yml --watch README.md --watch steering

clean:
	rm -rf $(VENV) runs build/site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "model-steering needs Python 3.11 or newer, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# The stamps are renewed when pyproject.toml changes, so a second call costs nothing.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed
