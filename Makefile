# make reproduce: train and write the quick Table 1 · make test: the test suite · make test-all: with the slow rest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: reproduce test test-all render lint clean

reproduce: $(INSTALLED)
	$(BIN)/python -m reproduce.table1 --tier quick

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

render: $(INSTALLED)
	$(BIN)/python -m reproduce.all --render

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .

$(INSTALLED): requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) runs
