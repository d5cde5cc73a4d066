"""The documents are true where a machine can tell: links lead somewhere, commands and options exist."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cyclopts
import pytest

from launcher import cli
from launcher.configuration_layers import auto_as_number

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".venv-peers", ".venv-reverb", "runs", "build", ".pytest_cache"}
    & set(path.relative_to(ROOT).parts)
)
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def commands(text: str) -> list[list[str]]:
    """Every `launcher ...` command line of a document's code."""
    code = re.findall(r"```(?:bash)?\n(.*?)```", text, flags=re.DOTALL)
    code += re.findall(r"^ {4}(launcher .*)$", text, flags=re.MULTILINE)
    code += re.findall(r"`(launcher [^`]*)`", text)
    lines = [line.strip() for block in code for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("launcher ") and "──" not in line]


def unknown_options(words: list[str]) -> list[str]:
    """The options in a command line, without the program's name, that its command does not declare.

    The parser alone would not find them all: it asks for a required argument that is missing first.
    """
    names, apps, _rest = cli.app.parse_commands(words)
    command = apps[sum(not name.startswith("-") for name in names)]  # --help and --version count as commands there
    declared = {*command.help_flags, *command.version_flags}
    if command.default_command is not None:
        declared |= {name for argument in command.assemble_argument_collection() for name in argument.names}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in declared]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_relative_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_and_their_options_exist(document: Path) -> None:
    for _launcher, *words in commands(document.read_text(encoding="utf-8")):
        if not words or "|" in words:
            continue
        assert not unknown_options(words), words
        with contextlib.suppress(cyclopts.MissingArgumentError):  # prose names commands without all they need
            cli.app.parse_args(auto_as_number(words), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_commands_stand_in_code_where_they_are_looked_at(document: Path) -> None:
    prose = re.sub(
        r"```.*?```|^(?: {4}|\|).*?$|`[^`]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert not re.search(r"\blauncher \w+ --\w+", prose)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_tests_that_are_named_exist(document: Path) -> None:
    for path, names in re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", document.read_text(encoding="utf-8")):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in names.split("::"):
            assert re.search(rf"^\s*(def|class) {name}\b", source, flags=re.MULTILINE), f"{path}::{name}"


def test_the_options_that_stand_for_other_implementations_exist() -> None:
    text = (ROOT / "docs" / "awac.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(--learner[^`]* --learner[^`]*)`", text)
    assert len(rows) == 4
    for row in rows:
        cli.app.parse_args(["up", *shlex.split(row)], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("line", "misspelt"),
    [
        ("launcher up --env pen --actorz 3", "--actorz"),
        ("launcher up --learner.batchsize=64 --env pen", "--learner.batchsize=64"),
        ("launcher chaos RUN --kil actor", "--kil"),
        ("launcher dataset demos --env relocate --nois-std 0.1", "--nois-std"),
        ("launcher replay export --origins all", "--origins"),
        ("launcher replay --help --run runs/a", "--run"),
        ("launcher --versions", "--versions"),
    ],
)
def test_a_misspelt_option_in_a_document_would_be_found(line: str, misspelt: str) -> None:
    (found,) = commands(f"    {line}\n")
    assert unknown_options(found[1:]) == [misspelt]


@pytest.mark.parametrize(
    "line",
    [
        "launcher chaos RUN --kill actor --every=30s --no-json",
        "launcher up --lockstep --learner.no-critic-layer-norm --empty-dataset --ray-address auto --help",
        "launcher --version",
        "launcher replay --help",
        "launcher up --help",
        "launcher dataset demos",
    ],
)
def test_options_that_exist_are_known_also_where_a_required_one_is_missing(line: str) -> None:
    (found,) = commands(f"    {line}\n")
    assert unknown_options(found[1:]) == []


def test_the_makefile_has_the_targets_that_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)\b", readme)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_default_job_of_make_up_is_a_valid_experiment(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"^UP \?= ((?:.*\\\n)*.*)", makefile, flags=re.MULTILINE)
    assert options is not None
    words = shlex.split(options[1].replace("\\\n", " "))
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "up", *words, "--dry-run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'env = "pen"' in done.stdout
