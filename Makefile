# Each target sets up what it needs in .venv by itself. PYTHON is the interpreter that the venv is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PROJECTS := pyproject.toml drill/pyproject.toml

# The tests start thousands of interpreters. Where Python may not keep what it has compiled, each of them compiles all again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-fast check bench soak simulate pythons drivers fuzz coverage docs links workflows clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## every fault against a private real server, unbroken beside what people use today
	@$(BIN)/unbroken drill $(ARGS)

test: $(VENV)/.test ## all tests, on real servers, four at a time (ARGS="-k fork", ARGS="-n 0 --pdb": one after the other)
	@$(BIN)/python -m pytest -n 4 $(ARGS)

test-fast: $(VENV)/.test ## within 90 s: the tests of all that is pure, and of a pool with one server (tests/fast.txt)
	@$(BIN)/python -m pytest -n 2 @tests/fast.txt $(ARGS)

check: $(VENV)/.check ## ruff, mypy, pyright and the linter of the English
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy
	@$(BIN)/mypy tests/typing
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright -p .
	@$(BIN)/python scripts/prose

bench: $(VENV)/.test ## what an acquire costs, beside other pools
	@$(BIN)/python bench/run.py $(ARGS)

soak: $(VENV)/.test .venvs/.apps ## the long tests
	@$(BIN)/python -m pytest -m soak $(ARGS)

simulate: $(VENV)/.test ## a million schedules of the real pool in a simulated world; goes on where it was stopped
	@PYTHONPATH=tests $(BIN)/python -m simulated.soak $(ARGS)

pythons: ## the tests of the pools on every Python that is here (ARGS: interpreters)
	@scripts/setup-servers "$(PYTHON)" build servers
	@scripts/test-pythons $(ARGS)

drivers: ## the drivers' tests with the oldest and the newest version of each that pyproject.toml allows (ARGS="oldest psycopg")
	@scripts/setup-servers "$(PYTHON)" build servers
	@$(PYTHON) scripts/test-driver-versions $(ARGS)

fuzz: ## a coverage-guided fuzzer on all that reads what others wrote (ARGS="--seconds 300 wire")
	@[ -x .venvs/fuzz/bin/python ] || { mkdir -p .venvs && scripts/setup-venv "$(PYTHON)" .venvs/fuzz fuzz; }
	@.venvs/fuzz/bin/python tests/fuzz/run.py $(ARGS)

coverage: $(VENV)/.test ## all tests but those that count calls, with coverage measured: htmlcov/index.html, and a floor
	@$(BIN)/python -m pip install -q --disable-pip-version-check --group coverage
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -n 4 --ignore=tests/perf $(ARGS)
	@$(BIN)/python -m coverage combine -q && $(BIN)/python -m coverage html -q && $(BIN)/python -m coverage report

docs: .venvs/.docs ## the site, built into docs/_build/html; any warning fails
	@.venvs/docs/bin/python -m sphinx -W -n -q -b html -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo docs/_build/html/index.html

links: .venvs/.docs ## ask every page of other sites that the site links to; needs a network
	@.venvs/docs/bin/python -m sphinx -q -b linkcheck -d docs/_build/doctrees docs docs/_build/links $(ARGS)

workflows: .venvs/.workflows ## look for mistakes and weak places in .github
	@.venvs/workflows/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venvs/workflows/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@.venvs/workflows/bin/zizmor --offline -q .github

clean: ## remove the venvs and all caches, also the drill's
	-@[ ! -x $(BIN)/unbroken ] || $(BIN)/unbroken drill --clean
	rm -rf $(VENV) .venvs .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/_build htmlcov .coverage* dist build drill/dist drill/build

# One stamp per set of dependencies, made anew when a pyproject.toml changes. The servers come first for the tests: mysqlclient
# is built against MariaDB's client library.
$(VENV)/.demo: $(PROJECTS) scripts/setup-venv
	@scripts/setup-venv "$(PYTHON)" $(VENV) demo
	@touch $@

$(VENV)/.check: $(PROJECTS) scripts/setup-venv
	@scripts/setup-venv "$(PYTHON)" $(VENV) check
	@touch $@

.venvs/.docs: $(PROJECTS) scripts/setup-venv
	@mkdir -p .venvs && scripts/setup-venv "$(PYTHON)" .venvs/docs docs
	@touch $@

.venvs/.workflows: $(PROJECTS) scripts/setup-venv
	@mkdir -p .venvs && scripts/setup-venv "$(PYTHON)" .venvs/workflows workflows
	@touch $@

.venvs/.apps: scripts/setup-apps
	@mkdir -p .venvs && scripts/setup-apps "$(PYTHON)" .venvs
	@touch $@

$(VENV)/.test: $(PROJECTS) scripts/setup-venv scripts/setup-servers
	@scripts/setup-servers "$(PYTHON)" build servers browser
	@scripts/setup-venv "$(PYTHON)" $(VENV) test
	@touch $@
