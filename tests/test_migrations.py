"""There and back again: what a migration makes, triggers and functions too, its downgrade takes away."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.conftest import ROOT
from tests.worker.conftest import postgres_database

LEFT = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'",
    "postgres": "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)"
    " + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)",
}


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_migrations_go_there_and_back(dialect: str, tmp_path: Path) -> None:
    database = nullcontext(f"sqlite:///{tmp_path}/test.db") if dialect == "sqlite" else postgres_database()
    with database as url:
        counts = []
        for command in (["upgrade", "head"], ["check"], ["downgrade", "0001"], ["upgrade", "head"]):
            environment = os.environ | {"DATABASE_URL": url}
            subprocess.run([sys.executable, "-m", "alembic", *command], cwd=ROOT, env=environment, check=True, capture_output=True)
            engine = create_engine(url)
            with engine.connect() as connection:
                counts.append(connection.execute(text(LEFT[dialect])).scalar_one())
            engine.dispose()
    made = counts[0]
    assert made > 0
    assert counts == [made, made, 0, made]
