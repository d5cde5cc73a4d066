from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replay_service.config import RunConfig
from replay_service.config_file import convert_table, load_role_config, load_run_config, nearest
from replay_service.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    ratio: float = 0.5
    limit: int | None = 3


@dataclass(frozen=True)
class RoleConfig:
    name: str = "none of your business"
    batch_size: int = 256
    clip: float | None = 1.0
    sizes: tuple[int, ...] = (256, 256)
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_an_empty_file_gives_the_defaults(path: Path) -> None:
    path.write_text("")
    assert load_run_config(path) == RunConfig()
    assert load_role_config(path, "learner", RoleConfig) == RoleConfig()


def test_each_value_reaches_its_field(path: Path) -> None:
    path.write_text(
        """
        env = "pen"
        utd_ratio = 2
        dataset = ["a", "b"]
        [environment]
        observation_dim = 45
        [replay]
        capacity = 700
        evict_seed = false
        [learner]
        batch_size = 8
        sizes = [1, 2, 3]
        inner = {ratio = 1}
        """
    )
    run = load_run_config(path)
    assert (run.env, run.utd_ratio, run.dataset) == ("pen", 2.0, ("a", "b"))
    assert isinstance(run.utd_ratio, float)
    assert (run.environment.observation_dim, run.replay.capacity, run.replay.evict_seed) == (45, 700, False)
    role = load_role_config(path, "learner", RoleConfig)
    assert role == RoleConfig(batch_size=8, sizes=(1, 2, 3), inner=Inner(ratio=1.0))


def test_tables_of_the_roles_are_no_concern_of_the_run(path: Path) -> None:
    path.write_text("[learner]\nx = 1\n[actor]\nx = 1\n[evaluator]\nx = 1\n[launcher]\nx = 1\n")
    assert load_run_config(path) == RunConfig()


def test_the_word_none_stands_for_none_where_none_is_allowed() -> None:
    table = {"clip": "none", "inner": {"limit": "none"}}
    converted = convert_table(table, RoleConfig, "here")
    assert converted.clip is None
    assert converted.inner == Inner(limit=None)


def test_the_word_none_is_a_text_where_a_text_is_wanted() -> None:
    assert convert_table({"name": "none"}, RoleConfig, "here").name == "none"


def test_the_word_none_is_refused_where_a_number_is_wanted() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        convert_table({"batch_size": "none"}, RoleConfig, "here")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acters = 3", r"unknown key 'acters'\. Did you mean 'actors'\?"),
        ("[replay]\ncapacty = 3", r"table \[replay\]: unknown key 'capacty'\. Did you mean 'capacity'\?"),
        ("zzzzzz = 3", r"unknown key 'zzzzzz'\.$"),
        ('actors = "three"', r"Expected `int`, got `str` - at `\$\.actors`"),
        ("actors = 2.5", "actors"),
        ("actors = true", "actors"),
        ('dataset = "door"', "dataset"),
        ("replay = 3", "replay"),
        ("[[replay]]\ncapacity = 3", r"expected one table \[replay\], got a list of 1"),
        ("replay = [3]", r"expected one table \[replay\], got a list of 1"),
        ("actors = 0", "actors: expected at least 1, got 0"),
        ("[replay]\nmax_memory_mb = 1", "replay.max_memory_mb: expected at least 64, got 1"),
        ("actors = ", "is not valid TOML"),
        ("actors = 1\nactors = 2", "is not valid TOML"),
        (f"seed = {'9' * 5_000}", "is not valid TOML: .*5000 digits"),
    ],
)
def test_a_mistake_in_the_run_is_named(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_run_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[learner]\nbatchsize = 3",
            r"run.toml, table \[learner\]: unknown key 'batchsize'\. Did you mean 'batch_size'",
        ),
        ("[learner.inner]\nratoi = 3", r"table \[inner\]: unknown key 'ratoi'\. Did you mean 'ratio'\?"),
        ("[learner]\nbatch_size = []", "batch_size"),
        ("learner = 3", r"table \[learner\]"),
        ("[[learner]]\nbatch_size = 3", r"table \[learner\]"),
    ],
)
def test_a_mistake_in_a_roles_table_is_named(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_role_config(path, "learner", RoleConfig)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*run\.toml: No such file"):
        load_run_config(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_run_config(tmp_path)


def test_a_file_that_is_no_text_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_run_config(path)


def test_the_nearest_name_is_offered_only_when_one_is_near() -> None:
    assert nearest("num_env_step", ["num_env_steps", "seed"]) == " Did you mean 'num_env_steps'?"
    assert nearest("num_env_step", ["seed"]) == ""
