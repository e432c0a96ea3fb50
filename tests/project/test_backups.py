"""What a backup holds, and what a restore refuses: with the servers' own programs.

tests/faults/test_containers.py does the same with containers.
"""

import io
import os
import shlex
import shutil
import tarfile
from io import StringIO
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from forking import run_forked
from nightshift.database import make_engine
from servers import postgres_database
from sqlalchemy import make_url, text

from project import backups
from tests.conftest import COMPOSITION, ROOT, make_runtime

ENV = """
from alembic import context
from nightshift.migrations import run_migrations

run_migrations(**context.config.attributes)
"""
NEWER = """
revision = "newer"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    {body}
"""


class Place:
    """An installation with migrations of its own, in the place of project/here.py's."""

    def __init__(self, folder, url):
        shutil.copy(ROOT / "alembic.ini", folder)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copytree(ROOT / "migrations", folder / "migrations")
        (folder / "migrations" / "env.py").write_text(ENV)
        self.folder, self.url, self.stopped = folder, url, 0
        self.after_restore, self.run_command = [], None
        self.runtime = make_runtime(database_url=url)
        of = make_url(url)
        named = [f"--host={of.host}", f"--username={of.username}", f"--port={of.port or 5432}"]
        self.database = (
            backups.Postgres(of.database, options=named)
            if of.host
            else backups.Sqlite(Path(of.database))
        )

    @property
    def config(self):
        attributes = {
            "runtime": self.runtime,
            "table_branches": COMPOSITION.table_branches(),
        }
        return Config(self.folder / "alembic.ini", stdout=StringIO(), attributes=attributes)

    def read_facts(self, *, database):
        script = ScriptDirectory.from_config(self.config)
        known = [one.revision for one in script.walk_revisions()]
        facts = {"project": "p", "version": "1", "engine": "2", "known": known}
        facts |= {"after_restore": self.after_restore}
        return facts | ({"at": self.revisions()} if database else {})

    def migrate(self):
        try:
            command.upgrade(self.config, "heads")
        except ValueError as error:
            raise backups.Refused(str(error)) from error

    def stop(self):
        self.runtime.disconnect()
        self.stopped += 1

    def start(self):
        self.stopped -= 1

    def execute(self, statement, url=None):
        engine = make_engine(url or self.url).execution_options(sqlite_begin="IMMEDIATE")
        try:
            with engine.begin() as connection:
                found = connection.execute(text(statement))
                return [tuple(row) for row in found] if found.returns_rows else []
        finally:
            engine.dispose()

    def mark(self, word):
        self.execute("DELETE FROM schedule")
        self.execute(f"INSERT INTO schedule (entry, last_fire_at) VALUES ('{word}', '2026-11-28')")

    @property
    def marked(self):
        return self.read_marks(make_url(self.url).database)

    def read_marks(self, database):
        url = make_url(self.url).set(database=database).render_as_string(hide_password=False)
        return [entry for (entry,) in self.execute("SELECT entry FROM schedule", url)]

    def revisions(self):
        return sorted(one for (one,) in self.execute("SELECT version_num FROM alembic_version"))

    def add_revision(self, body):
        versions = self.folder / "migrations" / "versions"
        versions.mkdir(exist_ok=True)
        (versions / "newer.py").write_text(NEWER.format(body=body))

    def remove_revision(self):
        (self.folder / "migrations" / "versions" / "newer.py").unlink()

    def back_up(self):
        path = self.folder / "backup.tar"
        backups.make(path, self, env=self.folder / ".env")
        return path

    def restore(self, path):
        return backups.restore(backups.read(path), self)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """Return an installation whose schedule has the entry `before`."""
    if request.param == "sqlite":
        shutil.copy(make_url(request.getfixturevalue("sqlite_url")).database, tmp_path / "test.db")
        made = Place(tmp_path, f"sqlite:///{tmp_path}/test.db")
        made.mark("before")
        yield made
        made.runtime.close()
        return
    if shutil.which("pg_dump") is None:
        pytest.skip("PG_DUMP IS NOT INSTALLED: apt-get install postgresql-client")
    with postgres_database() as url:
        made = Place(tmp_path, url)
        made.migrate()
        made.mark("before")
        yield made
        made.runtime.close()


@pytest.fixture
def on_sqlite(sqlite_url, tmp_path):
    shutil.copy(make_url(sqlite_url).database, tmp_path / "test.db")
    made = Place(tmp_path, f"sqlite:///{tmp_path}/test.db")
    yield made
    made.runtime.close()


def test_restore_brings_back_what_was_backed_up(place):
    (place.folder / ".env").write_text("WORD=secret\n")
    path = place.back_up()
    place.mark("after")
    place.execute("CREATE TABLE later (id integer)")
    heads = place.revisions()

    place.restore(path)

    # The caller starts the processes.
    assert (place.marked, place.revisions(), place.stopped) == (["before"], heads, 1)
    # The database is made anew: a table of afterwards is gone.
    with pytest.raises(Exception, match="later"):
        place.execute("SELECT * FROM later")
    backup = backups.read(path)
    assert (backup.manifest["at"], backup.env) == (heads, b"WORD=secret\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in place.folder.glob("*backup*")) == ["backup.tar"]


@pytest.mark.parametrize("succeeds", [True, False])
def test_commands_after_a_restore_may_read_the_replaced_database(place, succeeds):
    path = place.back_up()
    place.mark("after")
    run, there = [], []

    def run_command(command):
        run.append(command)
        [_, name] = shlex.split(command)
        there.append(place.read_marks(name))
        return succeeds

    place.after_restore, place.run_command = ["look {replaced}"], run_command

    failed = place.restore(path)

    assert (place.marked, there) == (["before"], [["after"]])
    assert failed == ([] if succeeds else run)
    # A command that failed can be run again.
    name = place.database.beside
    if succeeds:
        with pytest.raises(Exception, match=r"exist|no such table"):
            place.read_marks(name)
    else:
        assert place.read_marks(name) == ["after"]
        place.database.drop_loaded()


def test_dump_of_an_older_release_is_migrated(place):
    heads = place.revisions()
    command.downgrade(place.config, "nightshift@-1")
    older = place.revisions()
    path = place.back_up()
    place.migrate()
    place.mark("after")

    place.restore(path)

    assert older != heads
    assert (place.marked, place.revisions()) == (["before"], heads)


def write_bare(path):
    """Write what pg_dump or SQLite wrote, without the archive around it."""
    bare = path.with_name("bare")
    with backups.read(path).open_dump() as dump:
        bare.write_bytes(dump.read())
    return bare


def test_dump_of_a_newer_release_is_refused(place):
    place.add_revision("pass")
    place.migrate()
    path = place.back_up()
    place.remove_revision()
    place.mark("after")

    # A bare dump has no manifest: its own table says what it is.
    for file in (path, write_bare(path)):
        with pytest.raises(backups.Refused, match=r"newer than this code: .* at revision newer"):
            place.restore(file)
        assert (place.marked, place.stopped) == (["after"], 0)


def test_bare_dump_is_restored(place):
    bare = write_bare(place.back_up())
    place.mark("after")

    place.restore(bare)

    assert place.marked == ["before"]


def test_restore_whose_migration_fails_leaves_the_database(place):
    path = place.back_up()
    place.mark("after")
    place.add_revision("raise ValueError('no such colour')")

    for _ in range(2):
        with pytest.raises(backups.Refused, match="no such colour"):
            place.restore(path)
        assert (place.marked, place.stopped) == (["after"], 0)
    assert "newer" not in place.revisions()


def test_dump_that_its_own_program_refuses_leaves_the_database(place):
    bare = write_bare(place.back_up())
    content = bare.read_bytes()
    bare.write_bytes(content[: len(content) // 2])
    place.mark("after")

    with pytest.raises(backups.Refused):
        place.restore(bare)

    assert (place.marked, place.stopped) == (["after"], 0)


def test_database_of_another_program_is_refused(place):
    names = [name for (name,) in place.execute("SELECT version_num FROM alembic_version")]
    place.execute("ALTER TABLE alembic_version RENAME TO other")
    bare_place = place.folder / "bare"
    place.database.dump(bare_place)
    place.execute("ALTER TABLE other RENAME TO alembic_version")

    with pytest.raises(backups.Refused, match="has no tables of this project"):
        place.restore(bare_place)
    assert len(place.revisions()) == len(names)


def test_restore_into_a_database_that_is_not_there(on_sqlite):
    on_sqlite.mark("before")
    path = on_sqlite.back_up()
    (on_sqlite.folder / "test.db").unlink()

    on_sqlite.restore(path)

    assert on_sqlite.marked == ["before"]


def rewrite(path, **changes):
    """Write the archive again with other members."""
    with tarfile.open(path) as archive:
        members = {one.name: archive.extractfile(one).read() for one in archive}
    with tarfile.open(path, "w") as archive:
        for name, content in (members | changes).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "a bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("-- PostgreSQL database dump"),
    "without a manifest": lambda path: rewrite(path, **{"manifest.json": b"{}"}),
    "another dump": lambda path: rewrite(path, **{"database.sqlite": b"SQLite format 3\0"}),
    "not there": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_refused_before_anything_is_changed(on_sqlite, damage):
    path = on_sqlite.back_up()
    damage(path)

    with pytest.raises(backups.Refused, match="is not a backup, or is damaged: "):
        backups.read(path)


def test_backup_of_another_kind_of_database_is_refused(on_sqlite):
    path = on_sqlite.folder / "dump"
    path.write_bytes(b"PGDMP and so on")

    with pytest.raises(backups.Refused, match=r"has database\.dump; here is a database\.sqlite"):
        on_sqlite.restore(path)


def test_command_waits_for_the_end_of_the_workers_and_says_what_is_wrong(
    on_sqlite, job_environment
):
    path = on_sqlite.back_up()
    on_sqlite.execute(
        "INSERT INTO worker (id, name, pid, queues, started_at, heartbeat_at)"
        " VALUES (zeroblob(16), 'one', 1, 'default', '2999-01-01', '2999-01-01')"
    )

    environment = os.environ | job_environment | {"DATABASE_URL": on_sqlite.url}
    words = ["restore", str(path)]
    done = run_forked("project.here", *words, environment=environment, folder=ROOT)

    said = "nothing was changed: 1 workers run: stop all processes of this project first\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_backup_that_fails_leaves_no_file(on_sqlite):
    on_sqlite.database = backups.Sqlite(on_sqlite.folder / "none.db")

    with pytest.raises(backups.Refused, match="there is no database"):
        on_sqlite.back_up()

    assert not list(on_sqlite.folder.glob("backup.tar*"))
