.PHONY: update

update: $(VENV)/.dev ## bring the changes of Nightshift into this project: docs/updating.md
	@$(BIN)/copier update --defaults
