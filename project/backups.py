"""Back up an installation into one file, and restore it from such a file.

A backup is a tar archive that only its owner may read, because it holds secrets:

    manifest.json    format, project, releases, revisions, instant, and the SHA-256 of the others
    database.dump    what `pg_dump --format=custom` wrote; or database.sqlite
    env              the installation's .env, where there is one

A restore also takes what pg_dump or SQLite wrote without an archive around it. The database is
loaded beside the present one, which is dropped only when the new one is migrated.

Only Python's own library is used: with Docker, the host has no more.
"""

import hashlib
import io
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

FORMAT = 1
MANIFEST, ENV = "manifest.json", "env"
DUMPS = {"database.dump": b"PGDMP", "database.sqlite": b"SQLite format 3\0"}
CHUNK = 1 << 20


class Refused(Exception):
    """Nothing was changed. The message says why, and what to do."""


class Database(Protocol):
    """What is backed up. A database that was loaded stands beside the present one until `swap`."""

    dump_name: str
    # After a swap, the name of the database that was replaced.
    beside: str

    def dump(self, target: Path) -> None:
        """Write the database into a file, as it was at one instant."""

    def load(self, source: IO[bytes]) -> list[str]:
        """Make a database beside the present one, and return its revisions."""

    def read_size(self) -> int:
        """Return how many bytes the database takes."""

    def swap(self) -> None:
        """Let the loaded database and the present one change places."""

    def drop_loaded(self) -> None:
        """Drop the database that stands beside the present one."""


class Installation(Protocol):
    """Where a backup comes from and goes to."""

    database: Database

    def read_facts(self, *, database: bool) -> dict[str, Any]:
        """Return what project/facts.py says."""

    def migrate(self) -> None:
        """Bring the database's tables up to date. Raises Refused."""

    def stop(self) -> None:
        """End all processes that use the database. Raises Refused where it cannot."""

    def start(self) -> None:
        """Start them again."""

    def run_command(self, command: str) -> bool:
        """Run one of the project's commands. Return whether it succeeded."""


@dataclass(frozen=True)
class Backup:
    """A file that was read to its end and found whole. `manifest` is empty for a bare dump."""

    path: Path
    dump_name: str
    manifest: Mapping[str, Any]
    env: bytes | None = None

    @contextmanager
    def open_dump(self) -> Iterator[IO[bytes]]:
        """Open the dump for reading."""
        if not self.manifest:
            with self.path.open("rb") as bare:
                yield bare
            return
        with tarfile.open(self.path) as archive:
            yield _member(archive, self.dump_name)


def run(
    command: Sequence[str],
    *,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    both: bool = False,
) -> str:
    """Run a program and return what it wrote. Raises Refused with its last lines where it failed.

    With `stdin`, the program gets that file; with `stdout`, what it writes goes there. With `both`,
    what it wrote to standard error is returned too.
    """
    feed = subprocess.PIPE if stdin else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command,
            stdin=feed,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.STDOUT if both or stdin else subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError as error:
        raise Refused(f"{command[0]} is not installed here") from error
    if stdin is not None:
        assert process.stdin is not None
        # A program that refuses the file reads it no further; what it says follows.
        with suppress(BrokenPipeError), process.stdin:
            shutil.copyfileobj(stdin, process.stdin, CHUNK)
        process.stdin = None
    written, errors = process.communicate()
    if process.returncode:
        said = (errors or written or b"").decode(errors="replace").strip().splitlines()
        raise Refused(f"{' '.join(command)}: {' / '.join(said[-3:]) or process.returncode}")
    return (written or b"").decode(errors="replace").strip()


class Postgres:
    """A Postgres database, by the programs that come with its server.

    `prefix` starts a program where those are: on this machine, or in a container.
    """

    dump_name = "database.dump"

    def __init__(
        self,
        name: str,
        *,
        prefix: Sequence[str] = (),
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.beside = name, f"{name}_beside"
        self._prefix, self._options, self._environment = prefix, options, environment

    def dump(self, target: Path) -> None:
        with target.open("wb") as file:
            self._run("pg_dump", "--format=custom", f"--dbname={self.name}", stdout=file)

    def load(self, source: IO[bytes]) -> list[str]:
        self.drop_loaded()
        self._ask(f'CREATE DATABASE "{self.beside}" TEMPLATE template0', on="postgres")
        # In one transaction, and without the names of roles, which this server need not have.
        how = ("--single-transaction", "--no-owner", "--no-privileges", "--exit-on-error")
        try:
            self._run("pg_restore", *how, f"--dbname={self.beside}", stdin=source)
            if self._ask("SELECT to_regclass('alembic_version')", on=self.beside) == "":
                return []
            return self._ask("SELECT version_num FROM alembic_version", on=self.beside).split()
        except Refused:
            self.drop_loaded()
            raise

    def read_size(self) -> int:
        return int(self._ask("SELECT pg_database_size(current_database())", on=self.name))

    def swap(self) -> None:
        names = f"'{self.name}', '{self.beside}'"
        leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN"
        turns = ((self.name, "_turn"), (self.beside, self.name), ("_turn", self.beside))
        moves = [
            f'ALTER DATABASE "{self._full(one)}" RENAME TO "{self._full(two)}"'
            for one, two in turns
        ]
        # One transaction: there is no instant without a database of this name.
        self._ask(f"{leave} ({names})", "BEGIN", *moves, "COMMIT", on="postgres")

    def drop_loaded(self) -> None:
        self._ask(f'DROP DATABASE IF EXISTS "{self.beside}" WITH (FORCE)', on="postgres")

    def _full(self, name: str) -> str:
        return f"{self.name}_turn" if name == "_turn" else name

    def _ask(self, *statements: str, on: str) -> str:
        quiet = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        commands = [f"--command={one}" for one in statements]
        return self._run("psql", *quiet, f"--dbname={on}", *commands)

    def _run(self, program: str, *arguments: str, **files: Any) -> str:
        command = [*self._prefix, program, *self._options, *arguments]
        return run(command, environment=self._environment, **files)


class Sqlite:
    """An SQLite database."""

    dump_name = "database.sqlite"

    def __init__(self, path: Path) -> None:
        self.path, self._beside = path, path.with_name(f"{path.name}-beside")
        self.beside = str(self._beside)

    def dump(self, target: Path) -> None:
        if not self.path.exists():
            raise Refused(f"{self.path}: there is no database")
        with (
            closing(sqlite3.connect(self.path)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)

    def load(self, source: IO[bytes]) -> list[str]:
        self.drop_loaded()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._beside.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            with closing(sqlite3.connect(self._beside)) as loaded:
                # One that is damaged raises, or has something to say.
                [(found,)] = loaded.execute("PRAGMA quick_check(1)").fetchall()
                query = "SELECT version_num FROM alembic_version"
                there = loaded.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
                revisions = loaded.execute(query).fetchall() if there.fetchone() else []
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            self.drop_loaded()
            raise Refused(f"the database in the backup is damaged: {found}")
        return [revision for (revision,) in revisions]

    def read_size(self) -> int:
        return self.path.stat().st_size

    def swap(self) -> None:
        turn = self.path.with_name(f"{self.path.name}-turn")
        for one, two in ((self.path, turn), (self._beside, self.path), (turn, self._beside)):
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{one}{suffix}").replace(f"{two}{suffix}")

    def drop_loaded(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._beside}{suffix}").unlink(missing_ok=True)


def make(target: Path, installation: Installation, *, env: Path) -> dict[str, Any]:
    """Write a backup and return its manifest. The file appears under its name when it is whole."""
    database = installation.database
    target.parent.mkdir(parents=True, exist_ok=True)
    part, dump = (target.with_name(f"{target.name}.{word}") for word in ("part", "dump"))
    previous = os.umask(0o077)
    try:
        database.dump(dump)
        facts = installation.read_facts(database=True)
        manifest = {
            "format": FORMAT,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **{name: facts[name] for name in ("project", "version", "engine", "at")},
            "sha256": {database.dump_name: _hash(dump)}
            | ({ENV: _hash(env)} if env.exists() else {}),
        }
        text = json.dumps(manifest, indent=1).encode()
        with tarfile.open(part, "w") as archive:
            entry = tarfile.TarInfo(MANIFEST)
            entry.size, entry.mode = len(text), 0o600
            archive.addfile(entry, io.BytesIO(text))
            for name, source in ((database.dump_name, dump), (ENV, env)):
                if name in manifest["sha256"]:
                    archive.add(source, arcname=name)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        read(part)
        part.replace(target)
    finally:
        os.umask(previous)
        for rest in (part, dump):
            rest.unlink(missing_ok=True)
    return manifest


def read(path: Path) -> Backup:
    """Read a file to its end and return what it is. Raises Refused for one that is not whole."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        for name, magic in DUMPS.items():
            if start.startswith(magic):
                return Backup(path, name, {})
        return _read_archive(path)
    except (OSError, tarfile.TarError, ValueError, KeyError, EOFError) as error:
        raise Refused(f"{path} is not a backup, or is damaged: {error}") from error


def _read_archive(path: Path) -> Backup:
    with tarfile.open(path) as archive:
        manifest = json.loads(_member(archive, MANIFEST).read())
        if manifest["format"] > FORMAT:
            raise Refused(
                f"{path} was made by the newer release {manifest['version']}: restore it with that"
            )
        for name, digest in manifest["sha256"].items():
            if _hash_of(_member(archive, name)) != digest:
                raise ValueError(f"{name} is not what was written")
        [dump] = DUMPS.keys() & manifest["sha256"].keys()
        env = _member(archive, ENV).read() if ENV in manifest["sha256"] else None
    return Backup(path, dump, manifest, env)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return _hash_of(file)


def _hash_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := file.read(CHUNK):
        digest.update(part)
    return digest.hexdigest()


def restore(backup: Backup, installation: Installation) -> list[str]:
    """Put a backup in the place of the installation's database, and migrate it.

    Raises Refused, with the installation as it was, when the file is of a newer release or of
    another kind of database, or cannot be loaded or migrated. Commands of the components then make
    again what is kept outside of the database, and take from the replaced one what must not go
    back; those that failed are returned, and the replaced database stays for them until the next
    restore. The caller then starts the processes.
    """
    database = installation.database
    if backup.dump_name != database.dump_name:
        raise Refused(f"{backup.path} has {backup.dump_name}; here is a {database.dump_name}")
    facts = installation.read_facts(database=False)
    _refuse_newer(backup, backup.manifest.get("at", ()), facts)
    with backup.open_dump() as dump:
        revisions = database.load(dump)
    try:
        _refuse_foreign(backup, revisions)
        _refuse_newer(backup, revisions, facts)
        installation.stop()
    except Refused:
        database.drop_loaded()
        raise
    try:
        _take_place(installation)
    except Refused:
        database.drop_loaded()
        installation.start()
        raise
    replaced = shlex.quote(database.beside)
    commands = [one.format(replaced=replaced) for one in facts["after_restore"]]
    failed = [one for one in commands if not installation.run_command(one)]
    if not failed:
        database.drop_loaded()
    return failed


def _take_place(installation: Installation) -> None:
    installation.database.swap()
    try:
        installation.migrate()
    except Refused:
        installation.database.swap()
        raise


def _refuse_foreign(backup: Backup, revisions: Sequence[str]) -> None:
    if not revisions:
        raise Refused(f"{backup.path} has no tables of this project")


def _refuse_newer(backup: Backup, revisions: Sequence[str], facts: Mapping[str, Any]) -> None:
    unknown = sorted(set(revisions) - set(facts["known"]))
    if unknown:
        made_by = backup.manifest.get("version", "a newer one")
        raise Refused(
            f"{backup.path} is newer than this code: it is of release {made_by}, at revision"
            f" {', '.join(unknown)}, which release {facts['version']} does not know; take that"
            " release, and restore it there"
        )
