"""Find the branch to which a table belongs, and the branch to which the next revision belongs."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from alembic import context
from alembic.operations.ops import MigrationScript, UpgradeOps
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import MetaData

ENGINE = "nightshift"
PROJECT = "project"

_CREATED = re.compile(r"""create_table\(\s*["'](\w+)["']""")


class Branches:
    """The branches of a project's tables.

    A table belongs to the branch that its component names; a table with a model but without a
    component to `project`; a table without a model to the branch whose history created it. Other
    tables belong to other programs, and are ignored.
    """

    def __init__(
        self, script: ScriptDirectory, metadata: MetaData, table_branches: Mapping[str, str]
    ) -> None:
        self._script = script
        created = {
            table: _label(revision)
            for revision in script.walk_revisions()
            for table in _CREATED.findall(Path(revision.path).read_text(encoding="utf-8"))
        }
        self._owners = {
            **created,
            **dict.fromkeys(metadata.tables, PROJECT),
            **table_branches,
        }

    def include_name(self, name: str | None, kind: str, _parents: Any) -> bool:
        """Return whether Alembic is to compare what the database has under this name."""
        return kind != "table" or name in self._owners

    def direct(self, _context: Any, _current: Any, scripts: list[MigrationScript]) -> None:
        """Put a new revision on its branch, with the changes of that branch's tables only.

        Without `--head` that is the branch whose tables differ from the database, or `project` when
        none do. Raises CommandError when tables of several branches differ. `alembic check` gets
        all changes.
        """
        [script] = scripts
        if script.message is None and not hasattr(context.config.cmd_opts, "autogenerate"):
            return  # `alembic check`
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        label = self._named(script) or self._differing(script.upgrade_ops)
        script.upgrade_ops.ops = [
            change for change in script.upgrade_ops.ops if self._owner(change) == label
        ]
        script.upgrade_ops.reverse_into(script.downgrade_ops)
        self._attach(script, label)

    def _owner(self, change: Any) -> str:
        return self._owners.get(getattr(change, "table_name", ""), PROJECT)

    def _named(self, script: MigrationScript) -> str | None:
        if script.branch_label is not None:
            return str(script.branch_label)
        if script.head in (None, "head", "base"):
            return None
        return _label(self._script.get_revision(str(script.head)))

    def _differing(self, changes: UpgradeOps) -> str:
        labels = sorted({self._owner(change) for change in changes.ops} - {ENGINE})
        if len(labels) > 1:
            raise CommandError(
                f"the tables of several branches differ from the database: {', '.join(labels)};"
                f" write one revision for each, beginning with `--head {labels[0]}@head`, and"
                " upgrade in between"
            )
        return labels[0] if labels else PROJECT

    def _attach(self, script: MigrationScript, label: str) -> None:
        """Put a revision at the end of its branch, or let it start the branch.

        It depends on the engine's head. A revision of `project` depends on the heads of all
        branches, because its tables may refer to any table.
        """
        heads = {head: self._labels(head) for head in self._script.get_heads()}
        own = tuple(head for head, labels in heads.items() if label in labels)
        if not own:
            folder = Path(self._script.dir) / ("versions" if label == PROJECT else label)
            script.head, script.branch_label = "base", label
            script.version_path = script.version_path or str(folder)
        elif script.head in (None, "head"):
            script.head = f"{label}@head"
        implied = {one.revision for one in self._script.get_all_current(own)}
        needed = [
            head
            for head, labels in heads.items()
            if label not in labels
            and head not in implied
            and (label == PROJECT or ENGINE in labels)
        ]
        script.depends_on = script.depends_on or needed or None

    def _labels(self, head: str) -> Collection[str]:
        return self._script.get_revision(head).branch_labels


def _label(revision: Script) -> str:
    return min(revision.branch_labels, default=PROJECT)
