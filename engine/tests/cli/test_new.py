"""`celery -A shop new …`, in a small project of the test's own.

That the project then passes all its checks is shown by tests/test_first_job.py.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from nightshift.celery.app import App
from nightshift.cli.new import new
from nightshift.component import Component, Composition
from nightshift.jobs import JobArgs
from nightshift.ledger import ledger

FILES = {
    "pyproject.toml": "[tool.ruff]\nline-length = 100\n",
    "shop/__init__.py": "",
    "shop/app.py": "from nightshift.ledger import ledger\n\nCOMPONENTS = (ledger,)\n",
    "services/__init__.py": "",
    "tasks/__init__.py": "",
    "migrations/env.py": "",
}

HOSTILE = (
    "",
    ".",
    "reports",
    "reports.",
    ".weekly",
    "reports.weekly.again",
    "Reports.weekly",
    "reports.Weekly",
    "reports.week-ly",
    "reports.week ly",
    "reports.1weekly",
    "1reports.weekly",
    "reports._weekly",
    "reports.__init__",
    "reports.wöchentlich",
    "reports.weekly\n",
    "reports.weekly\x1b[31m",
    "reports.\udcff",
    "../../etc.passwd",
    "/etc.weekly",
    "reports/..weekly",
    "reports;rm.weekly",
    "$(id).weekly",
    "--help.weekly",
    "{noun}.{job}",
    "class.weekly",
    "reports.lambda",
    "reports.none",
    "reports.print",
    "list.weekly",
    "reports.jobs",
    "reports.models",
    "reports.job_args",
    f"reports.{'a' * 31}",
    f"{'a' * 100_000}.weekly",
)


class Existing(JobArgs, kind="stock.count", queue="stock"):
    """Count."""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return the folder of a project; the current folder is another one."""
    root = tmp_path / "shop"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(root)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    yield root
    sys.modules.pop("shop", None)


@pytest.fixture
def call(root):
    """Return what runs `new` on the project, with one more component, and returns the result."""
    stock = Component(name="stock", kinds=(Existing,))

    def call(*words, components=(stock,)):
        app = App("shop.celery", Composition([ledger, *components]), _env_file=None)
        result = CliRunner().invoke(new, words, obj=SimpleNamespace(app=app))
        app.runtime.close()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def refused(root, call):
    """Return what asserts that a call is refused in one line and writes nothing."""

    def refused(*words, **options):
        before = read_all(root.parent)
        result = call(*words, **options)
        # Before what is wrong, click may show how the command is used.
        said = result.output.splitlines()
        of_click = ("Usage: ", "Try ")
        [error] = [one for one in said if one and not one.startswith(of_click)]
        assert error.startswith("Error: ")
        assert result.exit_code == 2
        assert read_all(root.parent) == before
        return error

    return refused


def read_all(folder):
    return {
        path: path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def lines_of(path):
    return path.read_text().splitlines()


def test_job_is_written_and_named(root, call):
    result = call("job", "reports.weekly")

    assert result.output.splitlines() == [
        "wrote    services/reports/__init__.py",
        "wrote    services/reports/jobs.py",
        "wrote    services/reports/weekly.py",
        "changed  shop/app.py",
        "wrote    shop/reports/__init__.py",
        "wrote    shop/reports/component.py",
        "wrote    tasks/reports.py",
        "wrote    tests/services/reports/test_weekly.py",
        "next: python -m pytest tests/services/reports/test_weekly.py",
    ]


def test_component_is_listed_with_its_import_in_order(root, call):
    call("job", "reports.weekly")

    assert lines_of(root / "shop/app.py") == [
        "from nightshift.ledger import ledger",
        "",
        "from shop.reports.component import reports",
        "",
        "COMPONENTS = (ledger, reports)",
    ]


def test_job_without_options_is_of_the_default_queue_and_not_unique(root, call):
    call("job", "reports.weekly")

    assert 'class Weekly(JobArgs, kind="reports.weekly"):' in lines_of(
        root / "services/reports/jobs.py"
    )


def test_recurring_job_has_a_queue_of_its_own_and_waits_once(root, call):
    call("job", "reports.weekly", "--queue", "reports", "--cron", "0 6 * * 1")

    declared = 'class Weekly(JobArgs, kind="reports.weekly", queue="reports", unique_by=()):'
    assert declared in lines_of(root / "services/reports/jobs.py")


@pytest.mark.parametrize(
    ("span", "written", "slot"),
    [
        ("45s", "timedelta(seconds=45)", "datetime(2026, 11, 21, 12, 0, 45"),
        ("90m", "timedelta(minutes=90)", "datetime(2026, 11, 21, 13, 30, 0"),
        ("120m", "timedelta(hours=2)", "datetime(2026, 11, 21, 14, 0, 0"),
        ("1d", "timedelta(days=1)", "datetime(2026, 11, 22, 0, 0, 0"),
    ],
)
def test_span_is_written_in_its_largest_unit_and_its_slot_is_tested(
    root, call, span, written, slot
):
    call("job", "reports.weekly", "--every", span)

    entry = f'    return [Entry("reports.weekly", Weekly(), {written}, UTC)]'
    assert entry in lines_of(root / "shop/reports/component.py")
    test = (root / "tests/services/reports/test_weekly.py").read_text()
    assert f"assert entry.after(NOW) == {slot}, tzinfo=UTC)" in test


def test_second_job_is_added_to_the_modules_of_its_noun(root, call):
    call("job", "reports.weekly", "--every", "1h")
    result = call("job", "reports.daily", "--cron", "0 6 * * *")

    assert result.exit_code == 0
    written = lines_of(root / "shop/reports/component.py")
    assert written[written.index("    return [") :] == [
        "    return [",
        '        Entry("reports.weekly", Weekly(), timedelta(hours=1), UTC),',
        '        Entry("reports.daily", Daily(), "0 6 * * *", UTC),',
        "    ]",
        "",
        "",
        "reports = Component(",
        '    name="reports",',
        "    kinds=(Weekly, Daily),",
        '    tasks=("tasks.reports",),',
        "    schedule=make_schedule,",
        ")",
    ]


def test_what_is_written_passes_ruff(root, call):
    call("job", "reports.weekly", "--every", "1h")
    call("job", "reports.daily")

    for words in (["check", "--select=E,F,I,W"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "."]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_comments_of_a_component_stay(root, call):
    call("job", "reports.weekly")
    path = root / "shop/reports/component.py"
    text = path.read_text().replace('name="reports",', 'name="reports",  # as in the ledger\n')
    path.write_text(text)

    call("job", "reports.daily")

    assert '    name="reports",  # as in the ledger' in lines_of(path)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:30]))
def test_name_that_is_none_is_refused(refused, name):
    refused("job", "--", name)


@pytest.mark.parametrize(
    "name",
    ["reports.report", "reports.Report-", "reports.None", "reports.Base", "reports.Warning"]
    + [name for name in HOSTILE if name.rpartition(".")[2][:1] != "W"],
    ids=lambda name: ascii(name[:30]),
)
def test_name_that_is_no_model_is_refused(refused, name):
    refused("model", "--", name)


@pytest.mark.parametrize(
    "field",
    [
        "",
        "title",
        ":str",
        "title:",
        "title:text",
        "Title:str",
        "id:int",
        "metadata:str",
        "date:date",
        "class:str",
        "print:str",
        "a b:str",
        "ä:str",
        "1:int",
        f"{'a' * 31}:str",
    ],
    ids=ascii,
)
def test_field_that_is_none_is_refused(refused, field):
    assert ascii(field.partition(":")[0])[1:-1] in refused("model", "--", "reports.Report", field)


def test_field_that_is_named_twice_is_refused(refused):
    refused("model", "reports.Report", "title:str", "title:int")


def test_table_that_exists_is_refused(refused):
    assert "the table 'job' exists already" in refused("model", "reports.Job")


@pytest.mark.parametrize("queue", ["", "a b", "Q", "x" * 51, "\udcff", "default\n", "é"])
def test_queue_that_is_no_name_is_refused(refused, queue):
    assert "--queue" in refused("job", "reports.weekly", "--queue", queue)


def test_queue_of_another_component_is_refused(refused):
    said = refused("job", "reports.weekly", "--queue", "stock")

    assert "that queue belongs to the component 'stock'" in said


@pytest.mark.parametrize(
    "span",
    ["", "0s", "1", "h", "-1h", "1.5h", "1w", "1h30m", "PT1H", "999999d", "1h\n", "١h", "9" * 9999],
)
def test_span_that_is_none_is_refused(refused, span):
    assert "--every" in refused("job", "reports.weekly", f"--every={span}")


@pytest.mark.parametrize(
    "rule",
    ["", "x", "* * * *", "61 * * * *", "0 0 30 2 *", "@daily", "0 6 * * mon\n", "*" * 99, "\udcff"],
)
def test_rule_that_is_none_is_refused(refused, rule):
    assert "--cron" in refused("job", "reports.weekly", f"--cron={rule}")


def test_both_rules_are_refused(refused):
    refused("job", "reports.weekly", "--every", "1h", "--cron", "0 6 * * 1")


def test_kind_that_exists_is_refused(refused):
    assert "the kind 'stock.count' exists already" in refused("job", "stock.count")


def test_component_that_is_elsewhere_is_refused(refused):
    assert "the component 'ledger' exists already" in refused("job", "ledger.weekly")


@pytest.mark.parametrize(
    "path",
    [
        "services/reports/weekly.py",
        "services/reports.py",
        "shop/reports.py",
        "tests/services/reports/test_weekly.py",
    ],
)
def test_file_that_exists_is_refused_by_its_name(root, refused, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("")

    assert path in refused("job", "reports.weekly")


@pytest.mark.parametrize(
    "path",
    ["services/reports/jobs.py", "tasks/reports.py", "shop/reports/component.py", "shop/app.py"],
)
@pytest.mark.parametrize("text", ["<<<<<<< ours\n", "import (\n", "\0", "def f(:\n"])
def test_file_that_is_not_python_is_refused_by_its_name(root, refused, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)

    assert path in refused("job", "reports.weekly")


def test_folder_in_the_place_of_a_file_is_refused(root, refused):
    (root / "tasks/reports.py").mkdir()

    assert "tasks/reports.py" in refused("job", "reports.weekly")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("services/reports/jobs.py", "class Weekly:\n    pass\n"),
        ("tasks/reports.py", "weekly = 1\n"),
        ("shop/app.py", "from elsewhere import reports\n\nCOMPONENTS = ()\n"),
    ],
)
def test_name_that_a_module_has_is_refused(root, refused, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)

    assert f"{path} has the name" in refused("job", "reports.weekly")


def test_list_of_components_that_is_computed_is_refused(root, refused):
    (root / "shop/app.py").write_text("COMPONENTS = tuple(find_components())\n")

    assert "shop/app.py has no plain tuple" in refused("job", "reports.weekly")


def test_schedule_that_is_computed_is_refused(root, refused):
    (root / "shop/reports").mkdir()
    (root / "shop/reports/component.py").write_text(
        'from plans import plan\n\nreports = Component(name="reports", schedule=plan)\n'
    )

    assert "component.py has no plain tuple" in refused("job", "reports.weekly", "--every", "1h")


def test_app_that_is_one_module_is_refused(refused, call, root):
    (root / "services/__init__.py").unlink()
    (root / "services").rmdir()

    assert "shop is not a project of the template" in refused("job", "reports.weekly")


def test_file_in_the_place_of_a_folder_is_refused(root, refused):
    (root / "tests").write_text("")

    assert "Not a directory" in refused("job", "reports.weekly")


def test_migration_that_fails_undoes_everything(root, refused):
    assert "`alembic upgrade heads` failed" in refused("model", "reports.Report")
