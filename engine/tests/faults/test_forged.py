"""Ten thousand messages that are not ours, among real ones."""

import pytest
from forged import drown
from installations import QUICK, any_installation


@pytest.mark.parametrize("kind", ["embedded", "servers", "rabbit"])
def test_worker_outlives_ten_thousand_foreign_messages(tmp_path, kind):
    with any_installation(kind, "probe_app", tmp_path, **QUICK) as installation:
        worker = installation.worker()
        drown(installation, random_messages=10_000, every=100)
        assert worker.poll() is None
