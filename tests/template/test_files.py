"""What the template copies, leaves out and writes, without running it."""

import ast
import re
import subprocess
import tomllib
import warnings

import pytest
from copier import run_copy
from plumbum import local
from ruamel.yaml import YAML

from project.settings import DESK_PORT, FLOWER_PORT, NAME, WEB_PORT
from tests.conftest import ROOT
from tests.making import GIT, make_project

YAML_FILE = YAML(typ="safe")
COPIER = YAML_FILE.load((ROOT / "copier.yml").read_text(encoding="utf-8"))

# What a project does not have: the making of projects, the engine's tests, and long proofs.
OWN = (
    ".github/ISSUE_TEMPLATE/",
    "CHANGELOG.md",  # it is engine/CHANGELOG.md there
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/",
    "copier.yml",
    "docs/commands.md",
    "docs/index.md",
    "docs/performance.md",
    "docs/scaling.md",
    "docs/settings.md",
    "docs/site.css",
    "docs/start.md",
    "docs/week.png",
    "engine/tests/",
    "project/reference.py",
    "template.mk",
    "template/",
    "tests/examples/test_school_dates.py",
    "tests/faults/",
    "tests/mail_accounting.py",
    "tests/making.py",
    "tests/oracles/",
    "tests/project/school/test_documentation.py",
    "tests/tasks/test_mail.py",
    "tests/test_alerts.py",
    "tests/template/",
    "tests/test_commands_of_docs.py",
    "tests/test_documentation.py",
    "tests/test_first_job.py",
    "tests/test_from_celery.py",
    "tests/test_reference.py",
    "tests/test_web_apps.py",
    "zensical.toml",
)
# What differs in a project of the same name with the school.
WRITTEN = {".pre-commit-config.yaml", "README.md", "pyproject.toml"}
NAMING_PORTS = {".devcontainer/devcontainer.json", ".env.example", "docker-compose.yml", "project/settings.py"}
ADDED = {".copier-answers.yml", "update.mk"}
# Words that only the school has.
SCHOOL = ("school", "calendar", "feed")


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Return the project of this repository's own name and with the school."""
    return make_project(tmp_path_factory.mktemp("same") / "made", school=True, name=NAME)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("shop") / "shop", school=False)


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def test_every_file_is_copied_or_named_as_the_repositorys_own(same):
    copied = {name for name in tracked() if not name.startswith(OWN)}

    made = {name for name in same.files() if not name.startswith(("engine/", "tests/engine/"))}
    assert made - ADDED == {name for name in copied if not name.startswith("engine/")}
    engine = {name for name in copied if name.startswith("engine/")}
    added = {"engine/CHANGELOG.md", "engine/LICENSE", "engine/MANIFEST", "engine/check.py"}
    assert {name for name in same.files() if name.startswith("engine/")} == engine | added


def read_with_our_ports(project, name):
    """Return a file's text as it would be with this repository's ports."""
    text = project.read(name)
    first = int(re.search(r"^WEB_PORT = (\d+)$", project.read("project/settings.py"), re.M)[1])
    ports = (WEB_PORT, FLOWER_PORT, 8025, DESK_PORT)
    for port, ours in enumerate(ports, start=first):
        text = text.replace(str(port), str(ours))
    return text


def test_files_of_the_same_project_are_equal(same):
    differing = {
        name
        for name in same.files() & tracked()
        if (same.folder / name).read_bytes() != (ROOT / name).read_bytes()
    }
    for name in NAMING_PORTS & differing:
        assert read_with_our_ports(same, name) == (ROOT / name).read_text(encoding="utf-8")

    assert differing == WRITTEN | NAMING_PORTS


def test_every_line_that_is_left_out_stands_in_its_file():
    named = [COPIER[one]["default"] for one in ("own_lines", "school_lines")]
    for name, lines in [item for one in named for item in YAML_FILE.load(one).items()]:
        stripped = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
        assert [line for line in lines if line not in stripped] == [], name


def test_every_path_of_the_school_is_there(same, shop):
    excluded = [name.partition("%>/")[2].partition("<%")[0] for name in COPIER["_exclude"]]
    paths = [name for name in excluded if name]

    made = [project for project in (same, shop) for name in paths if (project.folder / name).exists()]
    assert len(made) == len(paths)


def test_without_the_school_no_file_names_a_part_of_it(shop, same):
    gone = {name.removesuffix(".py").replace("/", ".") for name in same.files() - shop.files()}
    packages = {".".join(name.split(".")[:2]) for name in gone}
    words = [name for name in packages if name.startswith(("services.", "project."))]
    words += [name for name in gone if name.startswith("tasks.")]

    naming = {
        name: word
        for name in shop.files()
        for word in words
        if name.endswith((".py", ".toml")) and word in shop.read(name)
    }
    assert words
    assert naming == {}


def test_no_setting_and_no_command_of_the_school_is_left(shop):
    commands = tomllib.loads(shop.read("pyproject.toml"))["project"]["entry-points"]
    assert commands == {
        "celery.commands": {
            "mail": "project.mail.cli:mail",
            "reminders": "project.reminders.cli:reminders",
        }
    }
    for name in (".env.example", "docker-compose.yml", "Makefile", "project/app.py"):
        assert [word for word in SCHOOL if word in shop.read(name).lower()] == [], name


def test_project_carries_its_name(shop):
    assert 'NAME = "my-shop"\n' in shop.read("project/settings.py")
    assert "PROJECT_NAME=my-shop\nDATABASE_URL" not in shop.read("project/settings.py")
    example = shop.read(".env.example").splitlines()
    assert {
        "PROJECT_NAME=my-shop",
        "DATABASE_URL=sqlite:///var/my-shop.db",
        "MAIL_FROM=My-shop <noreply@my-shop.example>",
    } <= set(example)
    assert "\nname: ${PROJECT_NAME:-my-shop}\n" in shop.read("docker-compose.yml")
    assert tomllib.loads(shop.read("pyproject.toml"))["project"]["name"] == "my-shop"


def test_files_that_run_carry_no_other_name(shop):
    for name in (".env.example", "docker-compose.yml", "Dockerfile", "project/settings.py"):
        text = shop.read(name).replace("from nightshift.", "")
        assert "nightshift" not in text.lower(), name


@pytest.mark.parametrize("with_school", [True, False])
def test_pages_link_only_to_what_is_there(same, shop, with_school):
    made = (same if with_school else shop).folder
    links = [
        (str(page.relative_to(made)), target)
        for page in [made / "README.md", *(made / "docs").rglob("*.md")]
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    ]

    assert links
    assert [link for link in links if not (made / link[0]).parent.joinpath(link[1]).exists()] == []


@pytest.mark.parametrize("with_school", [True, False])
def test_tests_import_only_helpers_that_are_there(same, shop, with_school):
    folder = (same if with_school else shop).folder / "tests"
    helpers = {path.stem for path in (ROOT / "engine" / "tests").glob("*.py")}
    imported = {
        name.partition(".")[0]
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    there = {path.stem for path in (folder / "engine").glob("*.py")}
    assert imported & helpers - {"conftest"} <= there


def test_answers_lead_back_to_the_template(shop):
    answers = YAML_FILE.load(shop.read(".copier-answers.yml"))

    assert answers.keys() == {"_commit", "_src_path", "name", "school"}
    assert (answers["_src_path"], answers["name"], answers["school"]) == (
        str(ROOT),
        "my-shop",
        False,
    )


@pytest.fixture
def refuse(tmp_path):
    """Return a function that asks copier for a project, and returns why it is refused."""

    def call(name="shop", **environment):
        options = {"data": {"name": name}, "defaults": True, "quiet": True, "vcs_ref": "HEAD"}
        with (
            local.env(**GIT, **environment),  # of the programs that copier starts
            warnings.catch_warnings(),
            pytest.raises(ValueError, match="name") as refused,
        ):
            warnings.simplefilter("ignore")  # that the last change is not yet committed
            run_copy(str(ROOT), tmp_path / "shop", **options)
        assert not (tmp_path / "shop").exists()
        return str(refused.value)

    return call


@pytest.mark.parametrize("name", ["Shop", "my_shop", "2shop", "shop-", "", "x" * 31, "a\nb"])
def test_name_that_is_no_name_is_refused(refuse, name):
    assert "Write small letters, digits and single hyphens" in refuse(name)


def test_name_of_a_package_that_is_needed_is_refused(refuse):
    assert "A package that the project needs has this name" in refuse("celery")


def test_template_without_symbolic_links_is_refused(refuse):
    windows = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.symlinks",
        "GIT_CONFIG_VALUE_0": "false",
    }

    assert "Make the project in WSL" in refuse(**windows)
