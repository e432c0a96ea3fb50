PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
COMPOSE = docker compose
# The distributions that lie here and are installed in place: each folder after those that it depends on.
EDITABLES = .

.DEFAULT_GOAL := help
.PHONY: help demo dev test check format bench faults oracles messages up down logs lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# --- no server needed ---

demo: $(VENV)/.run ## load the example school and build its calendars: SQLite, file broker, a real worker
	@$(BIN)/python -m project.local demo

dev: $(VENV)/.run ## worker, beat, feed server and Flower until Ctrl-C
	@$(BIN)/python -m project.local dev

# --- for developers ---

test: $(VENV)/.dev ## all tests but the long ones; servers are used where they are reachable
	@$(BIN)/python -m pytest -m "not faults and not oracles"

check: $(VENV)/.dev ## format, lint, types, import direction, compose file and Dockerfile
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev ## put the code into its form
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: $(VENV)/.dev ## the figures of the README, as ratios in one run
	@$(BIN)/python -m benchmarks

faults: $(VENV)/.dev ## the long runs that kill processes
	@$(BIN)/python -m pytest -m faults -s

oracles: $(VENV)/.dev ## let eight programs that nobody here wrote read the feeds of three schools
	@if command -v npm >/dev/null; then npm install --silent --no-save --prefix var/oracles ical.js@2.2.1; fi
	@$(BIN)/python -m pytest -m oracles

messages: $(VENV)/.dev ## bring the catalogues up to date with the texts in code and templates
	@mkdir -p build
	@$(BIN)/pybabel -q extract --mapping-file pyproject.toml --sort-output --no-location --omit-header --output-file build/nightshift.pot services project
	@for language in $$(ls services/locales); do \
		$(BIN)/pybabel -q update --omit-header --no-wrap --no-fuzzy-matching --ignore-obsolete --init-missing \
			--input-file build/nightshift.pot --locale $$language --output-file services/locales/$$language/nightshift.po || exit 1; \
	done

lock: $(VENV)/.installer ## pin every dependency anew, with hashes; `make lock UPGRADE=` keeps the versions that are pinned
	$(LOCK) --group installer --output-file requirements-installer.txt
	$(LOCK) --group build $(PYPROJECTS) --output-file requirements.txt
	$(LOCK) --constraint requirements.txt --group build --group dev --extra telemetry $(PYPROJECTS) --output-file requirements-dev.txt

clean: ## remove the environment and everything that was made
	rm -rf $(VENV) var build *.egg-info

# --- with Docker ---

up: .env ## start everything in containers and wait until all is healthy
	@$(COMPOSE) up --detach --build --wait --wait-timeout 300 || { $(COMPOSE) ps --all; echo "not all is healthy: make logs"; exit 1; }
	@echo "Flower: http://$$($(COMPOSE) port flower 5555) (login: FLOWER_BASIC_AUTH in .env)"
	@echo "Mailpit: http://$$($(COMPOSE) port mailpit 8025) (the same login); takes all mail until MAIL_URL in .env names a server"
	@echo "Feed server: http://$$($(COMPOSE) port web 8000); an address: $(COMPOSE) exec worker celery -A project feeds url class NAME"
	@echo "The calendars: in the volume nightshift_feeds, /app/var/feeds in the worker"
	@echo "A first school: $(COMPOSE) exec worker celery -A project school demo; then: $(COMPOSE) exec worker celery -A project feeds sync"

down: ## stop the containers; their data stays
	@$(COMPOSE) down

logs: ## follow what the containers say
	@$(COMPOSE) logs --follow --tail=100

# Secrets of its own for every installation: nobody forgets to change a default that does not exist. Containers have no folder for mail:
# an empty MAIL_URL is docker-compose.yml's.
.env: | .env.example
	@umask 077 && $(PYTHON) -c "import pathlib, re, secrets; text = pathlib.Path('.env.example').read_text(encoding='utf-8').replace('ENVIRONMENT=development', 'ENVIRONMENT=production').replace('MAIL_URL=folder://var/mail', 'MAIL_URL='); pathlib.Path('.env.part').write_text(re.sub('change-me', lambda _: secrets.token_urlsafe(24), text), encoding='utf-8')"
	@mv .env.part .env
	@echo ".env was made from .env.example, with new secrets"

# --- the environment ---

# Whatever pip the system has, it installs one thing: the installer, which then installs the rest. What is asked for with extras is locked
# with them (`kombu[redis]`), or a pip before 23.3 would look for a release of its own.
PYPROJECTS = $(patsubst ./%,%,$(EDITABLES:%=%/pyproject.toml))
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python
# uv trusts the certificates that it brings; where the system has some, those, among which may be a company's. With none it would not start.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/cert.pem /etc/ssl/ca-bundle.pem /etc/ssl/certs/ca-*),true,false)
UPGRADE = --upgrade
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-header $(UPGRADE)

# A venv without pip is completed: Debian leaves one where python3-venv is missing, and uv makes such.
$(VENV)/.installer: requirements-installer.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-installer.txt
	@touch $@

$(VENV)/.run: $(VENV)/.installer requirements.txt $(PYPROJECTS)
	@echo "installing into $(VENV) …"
	@$(INSTALL) --require-hashes --requirement requirements.txt
	@$(INSTALL) --no-deps --no-build-isolation $(EDITABLES:%=--editable %)
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	@echo "installing the developer's tools …"
	@$(INSTALL) --require-hashes --requirement requirements-dev.txt
	@touch $@
