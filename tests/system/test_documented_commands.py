"""The commands of the documents, run: `up` as far as --dry-run goes, the others on a real run that has finished."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.run_connection import redis_of
from launcher.run_directory import RunDirectory
from replay_service.config_file import load_run_config
from replay_service.demonstrations import shipped_path
from replay_service.keys import Keys
from tests.launcher.test_documentation import DOCUMENTS, commands
from tests.system.conftest import Start
from tests.system.launching import SMALL_PEN, launcher

pytestmark = [pytest.mark.system, pytest.mark.slow]

# commands.md is made from the code; those of cluster.md are run by test_cluster.py, on machines of its own.
WRITTEN = [document for document in DOCUMENTS if document.name not in ("commands.md", "CHANGELOG.md", "cluster.md")]
HAVE_TESTS_OF_THEIR_OWN = ("up", "attach", "chaos", "down", "scale", "video", "watch")
MOST_PROSE = {
    "dataset": 3,
    "replay": 3,
    "plot": 2,
    "report": 2,
    "export": 2,
    "eval": 2,
    "status": 1,
    "doctor": 1,
    "logs": 1,
}
"""Words below which a command in the text is its name, not an example."""


def documented() -> list[list[str]]:
    found = {tuple(words[1:]) for document in WRITTEN for words in commands(document.read_text(encoding="utf-8"))}
    return sorted(
        list(words)
        for words in found
        if len(words) > 1 or words in (("watch",), ("status",), ("doctor",), ("logs",))
        if not any(part in ("|", "...", "…") or (part.isupper() and part != "RUN") for part in words)
    )


@pytest.mark.parametrize(
    "words", [w for w in documented() if w[0] == "up" and not {"resume", "--help"} & set(w)], ids=shlex.join
)
def test_up_accepts_what_the_documents_say(words: list[str], tmp_path: Path) -> None:
    data = str(shipped_path("pen" if "pen" in words else "door" if "door" in words else "relocate"))
    given = [data if before == "--dataset" and word != "none" else word for before, word in pairwise(["", *words])]
    if "--redis-url" in given:  # there is none of that name here; test_up.py has a real one
        del given[given.index("--redis-url") : given.index("--redis-url") + 2]
    if "--config" in given:  # of a run
        path = tmp_path / given[given.index("--config") + 1]
        path.parent.mkdir(parents=True)
        path.write_text(launcher("up", "--env", "pen", "--dry-run").stdout, encoding="utf-8")
    launcher(*given, "--dry-run", cwd=tmp_path)


def other_seed(run: Path, copy: Path, *, env: str, seed: int) -> None:
    """A run of the same curve under another seed: its evaluations are all that a plot reads."""
    copy.mkdir(parents=True)
    header, *rows = (run / "evaluations.csv").read_text(encoding="utf-8").splitlines()
    changed = [",".join([env, row.split(",")[1], str(seed), *row.split(",")[3:]]) for row in rows]
    (copy / "evaluations.csv").write_text("\n".join([header, *changed]) + "\n", encoding="utf-8")


def first_entry(run: Path) -> str:
    """Id of a trajectory in the run's replay buffer."""
    directory = RunDirectory(run)
    config = load_run_config(directory.config)
    with redis_of(directory, config) as client:
        return client.xrange(Keys(config.run_id).online, count=1)[0][0].decode()


@pytest.mark.timeout(900)
def test_the_other_commands_do_what_they_say(start: Start, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    launched = start(*SMALL_PEN, "--num-env-steps", "1200", run_dir=tmp_path / "runs" / "pen-0")
    assert launched.wait() == 0, launched.output + launched.logs()
    for seed, name in enumerate(("pen-1", "pen-2", "a", "b", "door-0"), start=1):
        other_seed(launched.run_dir, tmp_path / "runs" / name, env=name.partition("-")[0], seed=seed)
    for name in ("runs/NAME", "runs/latest", "RUN"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(launched.run_dir)
    entry = first_entry(launched.run_dir)
    tried = []
    for words in documented():
        if (
            words[0] in HAVE_TESTS_OF_THEIR_OWN
            or words[:2] in (["dataset", "rollout"], ["dataset", "demos"])
            or len(words) < MOST_PROSE[words[0]]
        ):
            continue
        given = [entry if word == "1700000000000-0" else word for word in words]
        if given[:2] == ["dataset", "inspect"]:
            given[2] = str(shipped_path("door" if "door" in given else "pen"))
        if given[0] == "eval":  # a short run has few versions, and many episodes take minutes
            for option, value in (("--version", "1"), ("--episodes", "2")):
                if option in given:
                    del given[given.index(option) : given.index(option) + 2]
                given += [option, value]
        launcher(*given, cwd=tmp_path)
        tried.append(words[0])
    assert {"eval", "plot", "report", "replay", "export", "dataset", "status", "doctor", "logs"} <= set(tried)
