# What a project that is made from this repository does not have: its own making, a site of the
# documentation, and long proofs.

.PHONY: new new-is-possible check-repository docs bench proofs faults oracles

DIR ?= ../$(NAME)
export NAME DIR

new: new-is-possible $(VENV)/.dev ## make a project of your own: make new NAME=shop [SCHOOL=yes] [DIR=../shop]
	@said=$$($(BIN)/copier copy --quiet --defaults --vcs-ref "$$(git rev-parse HEAD)" \
		--data "name=$$NAME" --data school=$(if $(filter yes true 1,$(SCHOOL)),true,false) "$(CURDIR)" "$$DIR" 2>&1) || \
		{ echo "$$said" | tail -n 1 >&2; exit 2; }
	@cd "$$DIR" && git init --quiet && git add --all && \
		{ git commit --quiet --message "Start from Nightshift" 2>/dev/null || \
		echo "Git does not know you yet (git config --global user.name …, and user.email …): commit the new project before its first update."; }
	@echo "$$NAME is made. Next: cd $$DIR && make demo"
	@echo "\`make update\` will look here for changes: keep this folder, or write another address into $$DIR/.copier-answers.yml"

new-is-possible:
	@test -n "$$NAME" || { echo "the name is missing: make new NAME=shop" >&2; exit 2; }
	@test ! -e "$$DIR" || { echo "$$DIR is there already: name another folder with DIR=" >&2; exit 2; }
	@git rev-parse --quiet --verify HEAD >/dev/null || { echo "this folder is not a clone: git clone the repository, and run make there" >&2; exit 2; }
	@test -z "$$(git status --porcelain)" || echo "The last commit is used: what was changed since is not in the new project."

check: check-repository

check-repository: $(VENV)/.dev
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/zensical build --strict

docs: $(VENV)/.dev ## write the pages on settings and commands, and build the site into build/site
	@$(BIN)/python -m project.reference
	@$(BIN)/zensical build --strict

bench: $(VENV)/.dev ## measure the figures of the README, as ratios within one run
	@$(BIN)/python -m benchmarks

# Whole runs of made projects, and every command of the documentation.
proofs: $(VENV)/.dev ## make projects as the documentation says, and check, test and update them
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		-m "proofs and not faults" tests

faults: $(VENV)/.dev ## run the long tests that kill processes
	@$(BIN)/python -m pytest -m faults -s engine/tests
	@$(BIN)/python -m pytest -m faults -s tests

oracles: $(VENV)/.dev ## let eight programs by other authors read the feeds of three schools
	@if command -v npm >/dev/null; then npm install --silent --no-save --prefix var/oracles ical.js@2.2.1; fi
	@$(BIN)/python -m pytest -m oracles tests
