"""No benchmark begins its work when it is asked what it does, or when a word is mistyped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.arguments import take_no_arguments

ROOT = Path(__file__).parents[2]
RUNNABLE = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", RUNNABLE)
def test_help_is_all_that_help_does(name: str) -> None:
    module = "benchmarks" if name == "__main__" else f"benchmarks.{name}"
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_help_says_how_it_is_called_and_what_it_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/weights.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        take_no_arguments("How old is a policy?\n\nMore of it.")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m benchmarks.weights [-h]\n\nHow old is a policy?\n")
    assert "More of it" not in said


@pytest.mark.parametrize("word", ["--hlep", "weights"])
def test_a_word_that_nothing_knows_is_refused(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["weights.py", word])
    with pytest.raises(SystemExit) as ended:
        take_no_arguments("How old is a policy?")
    assert ended.value.code == 2
    assert f"unrecognized arguments: {word}" in capsys.readouterr().err


def test_without_a_word_the_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["weights.py"])
    take_no_arguments(None)
