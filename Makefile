PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
COMPOSE = docker compose
# Which optional services run. An .env of an earlier release has no such line, and had these.
PROFILES_LINE = $(shell grep -s '^COMPOSE_PROFILES=' .env | tail -n 1)
EARLIER_PROFILES = flower,mailpit
USUAL_PROFILES = desk,$(EARLIER_PROFILES)
export COMPOSE_PROFILES ?= $(if $(PROFILES_LINE),$(patsubst COMPOSE_PROFILES=%,%,$(PROFILES_LINE)),$(EARLIER_PROFILES))
# The distributions of this repository, installed in place: each after those that it depends on.
EDITABLES = $(wildcard ./engine) .

.DEFAULT_GOAL := help
.PHONY: help demo dev migrate migration shell test test-engine test-project check audit unmerged format messages up down backup restore upgrade rollback logs lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# --- no server needed ---

demo: $(VENV)/.run ## load the example school, build its calendars and send two mails, without a server
	@$(BIN)/python -m examples.demo

dev: $(VENV)/.run ## run worker, beat, web server, desk and Flower until Ctrl-C
	@$(BIN)/python -m project.local

migrate: $(VENV)/.run ## bring the database's tables up to date
	@$(BIN)/alembic upgrade heads

shell: $(VENV)/.run ## a Python prompt with a session, the runtime, the app and enqueue
	@$(BIN)/python -m project.shell

# --- for developers ---

# The text is taken from the environment, where make puts it: no shell reads it as a command.
migration: $(VENV)/.dev ## write a migration from the models: make migration m="what changes"
	@test -n "$$m" || { echo 'say what changes: make migration m="reports have a title"' >&2; exit 2; }
	@$(BIN)/alembic revision --autogenerate -m "$$m"

# The engine's tests and the project's are two runs: the models of both tests are not in one database.
# They run at the same time, and each in several processes, because many tests wait
# (engine/tests/spreading.py): make test PROCESSES=1 is slower, and easier to follow. The second run
# is shown at its end. Compiled files are kept, also where the environment says otherwise: the tests
# start hundreds of processes.
PROCESSES = 3
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(PROCESSES) \
	--dist loadfile --no-loadscope-reorder -m "not faults and not oracles and not proofs"

test: $(VENV)/.dev ## run all tests but the long ones; servers are used where they are reachable
	@$(MAKE) --no-print-directory --jobs=2 $(if $(wildcard engine/tests),test-engine) test-project

test-engine:
	@$(PYTEST) engine/tests

test-project:
	@mkdir -p build
	@$(PYTEST) tests $(if $(wildcard engine/tests),> build/tests.txt 2>&1; ended=$$?; cat build/tests.txt; exit $$ended)

check: unmerged $(VENV)/.dev ## check format, lint, types, import direction, YAML files and Dockerfile
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/hadolint Dockerfile
	$(if $(wildcard engine/MANIFEST),$(BIN)/python engine/check.py)

# Before anything is installed: the lists of what to install may have markers, too.
unmerged:
	@! git grep --files-with-matches -E '^(<<<<<<<|>>>>>>>) ' 2>/dev/null || { echo "these files have conflict markers: choose between the two sides, and remove the markers" >&2; exit 1; }

# Not among the pinned tools: they are asked about the pins, and what they know changes every day.
audit: $(VENV)/.installer ## let bandit read the code, and pip-audit the pinned requirements
	@$(BIN)/uv tool run --from "bandit[toml]==1.9.4" bandit --quiet --configfile pyproject.toml --recursive $(wildcard engine/nightshift) services tasks project migrations
	@$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --require-hashes --disable-pip --requirement requirements.txt

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

messages: $(VENV)/.dev ## update the catalogues from the texts in code and templates
	@mkdir -p build
	@$(BIN)/pybabel -q extract --mapping-file pyproject.toml --sort-output --no-location --omit-header --output-file build/messages.pot services project
	@for language in $$(ls services/locales); do \
		$(BIN)/pybabel -q update --omit-header --no-wrap --no-fuzzy-matching --ignore-obsolete --init-missing \
			--input-file build/messages.pot --locale $$language --output-file services/locales/$$language/messages.po || exit 1; \
	done

lock: $(VENV)/.installer ## pin every dependency again, with hashes; `make lock UPGRADE=` keeps pinned versions
	$(LOCK) --group installer --output-file requirements-installer.txt
	$(LOCK) --group build $(PYPROJECTS) --output-file requirements.txt
	$(LOCK) --constraint requirements.txt --group build --group dev --all-extras $(PYPROJECTS) --output-file requirements-dev.txt
	@echo obstore | $(LOCK) --constraint requirements.txt - --output-file requirements-s3.txt
	@echo webuntis | $(LOCK) --constraint requirements.txt - --output-file requirements-webuntis.txt

clean: ## remove the environment and all that was built, also var/ with its databases
	rm -rf $(VENV) var build engine/build *.egg-info engine/*.egg-info

# --- with Docker ---

# The image of a release was built by `make upgrade`, perhaps from other code than this folder's.
BUILT = $(if $(shell sed -n 's/^IMAGE_TAG=//p' .env 2>/dev/null),--no-build,--build)

up: .env ## start everything in containers, and wait until all are healthy
	@$(PYTHON) -m project.host ports
	@$(COMPOSE) up --detach $(BUILT) --wait --wait-timeout 300 || { $(COMPOSE) ps --all; $(PYTHON) -m project.host failures; exit 1; }
	@$(if $(findstring desk,$(COMPOSE_PROFILES)),echo "Desk: http://$$($(COMPOSE) port desk 8001) (login: DESK_USERS in .env)")
	@$(if $(findstring flower,$(COMPOSE_PROFILES)),echo "Flower: http://$$($(COMPOSE) port flower 5555) (login: FLOWER_BASIC_AUTH in .env)")
	@$(if $(findstring mailpit,$(COMPOSE_PROFILES)),echo "Mailpit: http://$$($(COMPOSE) port mailpit 8025) (the same login); takes all mail until MAIL_URL in .env names a server")
	@echo "Web server: http://$$($(COMPOSE) port web 8000)"
	@echo "A calendar's address: $(COMPOSE) exec worker celery -A project feeds url class NAME"
	@echo "Calendars: in the volume feeds, /app/var/feeds in the worker"
	@echo "A first school: $(COMPOSE) exec worker python examples/made_up_school.py; then: $(COMPOSE) exec worker celery -A project feeds sync"

down: ## stop the containers; their data stays
	@$(COMPOSE) down

backup: ## write the database and .env into one file: make backup, or make backup FILE=…
	@$(PYTHON) -m project.host backup "$(FILE)"

restore: ## put a backup in the place of the database: make restore FILE=…
	@test -n "$(FILE)" || { echo "name the backup: make restore FILE=backups/…" >&2; exit 2; }
	@$(PYTHON) -m project.host restore "$(FILE)"

upgrade: .env ## take the code of this folder while the present release serves
	@$(PYTHON) -m project.host upgrade

rollback: ## go back to the release before, without a migration
	@$(PYTHON) -m project.host rollback

logs: ## follow the containers' logs
	@$(COMPOSE) logs --follow --tail=100

# Every installation gets new secrets, so that no default must be changed. MAIL_URL is emptied, because
# containers have no folder for mail: docker-compose.yml sets it then. Of the desk's first password
# .env has a hash only, as nightshift/desk/logins.py makes it.
.env: | .env.example
	@umask 077 && $(PYTHON) -c "$$MAKE_ENV" '$(USUAL_PROFILES)'
	@mv .env.part .env
	@echo ".env was made from .env.example, with new secrets"

define MAKE_ENV
import base64, hashlib, pathlib, re, secrets, sys
text = pathlib.Path(".env.example").read_text(encoding="utf-8")
text = text.replace("ENVIRONMENT=development", "ENVIRONMENT=production")
text = text.replace("MAIL_URL=folder://var/mail", "MAIL_URL=")
password, salt = secrets.token_urlsafe(12), secrets.token_bytes(16)
key = hashlib.scrypt(password.encode(), salt=salt, n=2**15, r=8, p=3, maxmem=2**27, dklen=32)
salt, key = (base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in (salt, key))
text = text.replace("DESK_USERS=\n", f"DESK_USERS=admin:act:scrypt.32768.8.3.{salt}.{key}\n")
text = re.sub("change-me", lambda _: secrets.token_urlsafe(24), text)
text += f"COMPOSE_PROFILES={sys.argv[1]}\n"
pathlib.Path(".env.part").write_text(text, encoding="utf-8")
print(f"The login of the desk, which is shown only now: admin, {password}")
endef
export MAKE_ENV

# --- the environment ---

# The system's pip, of any version, installs only the installer (uv), which installs the rest.
# Extras are locked with their extras (`kombu[redis]`), or a pip before 23.3 would look for another
# release.
PYPROJECTS = $(patsubst ./%,%,$(EDITABLES:%=%/pyproject.toml))
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python
# Where the system has certificates, uv uses those, because a company's may be among them; elsewhere
# the ones that it brings. With system certificates and none there it would not start.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/cert.pem /etc/ssl/ca-bundle.pem /etc/ssl/certs/ca-*),true,false)
UPGRADE = --upgrade
# The engine is part of this repository, and then it is not locked.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-strip-extras --no-emit-index-url --no-header $(if $(wildcard engine),--no-emit-package celery-nightshift) $(UPGRADE)

# A venv without pip is completed: Debian makes one when python3-venv is missing, and uv always does.
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

# Commands of your own may be in files *.mk, which an update leaves alone.
include $(wildcard *.mk)
