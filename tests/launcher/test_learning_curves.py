"""Learning curves from made evaluations: means, bands, what is left out, and every refusal."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from launcher.learning_curves import (
    COLUMNS,
    EvaluationsError,
    make_curves,
    merge,
    read_evaluations,
    write_rows,
)

HEADER = (
    "env,preset,seed,policy_version,env_steps,grad_steps,success_any,success_final,success_fraction,episode_return,"
    "episode_length,episodes,seconds,unix_seconds"
)


def run_file(path: Path, *points: tuple[int, int, float], seed: int = 0, env: str = "pen", preset: str = "paper"
             ) -> Path:  # fmt: skip
    """A file as a run writes it; a point is (policy version, env steps, success at the last step)."""
    lines = [HEADER]
    for version, env_steps, success in points:
        lines.append(
            f"{env},{preset},{seed},{version},{env_steps},{1000 + env_steps},{success},{success},0.5,-90.5,"
            f"200.0,50,1.5,1700000000.0"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_untrained_policy_is_left_out_and_the_offline_point_is_the_first(tmp_path: Path) -> None:
    rows = read_evaluations(run_file(tmp_path / "e.csv", (0, 0, 0.1), (1, 0, 0.6), (40, 5000, 0.8)))
    assert [(row.env_steps, row.success_final) for row in rows] == [(0, 0.6), (5000, 0.8)]
    (curve,) = make_curves(rows, metric="success_final", axis="env_steps")
    assert (curve.x, curve.mean, curve.offline) == ((0, 5000), (0.6, 0.8), (0, 0.6))
    (by_updates,) = make_curves(rows, metric="success_final", axis="grad_steps")
    assert (by_updates.x, by_updates.offline) == ((1000, 6000), (1000, 0.6))


def test_mean_and_band_over_seeds_at_the_points_that_all_have(tmp_path: Path) -> None:
    files = [
        run_file(tmp_path / "0", (1, 0, 0.2), (2, 5000, 0.4), (3, 10_000, 0.9), seed=0),
        run_file(tmp_path / "1", (1, 0, 0.6), (2, 5000, 0.5), seed=1),
        run_file(tmp_path / "2", (1, 0, 0.1), (2, 5000, 0.9), (3, 10_000, 0.7), seed=2),
    ]
    (curve,) = make_curves(
        merge([(str(f), read_evaluations(f)) for f in files]), metric="success_any", axis="env_steps"
    )
    assert curve.x == (0, 5000)
    assert curve.mean == pytest.approx((0.3, 0.6))
    assert (curve.low, curve.high) == ((0.1, 0.4), (0.6, 0.9))
    assert curve.points_left_out == 1
    assert [(s.seed, s.x, s.y) for s in curve.seeds] == [
        (0, (0, 5000, 10_000), (0.2, 0.4, 0.9)),
        (1, (0, 5000), (0.6, 0.5)),
        (2, (0, 5000, 10_000), (0.1, 0.9, 0.7)),
    ]
    assert curve.episodes == (50, 50)


def test_groups_are_told_apart_by_environment_and_preset_or_label(tmp_path: Path) -> None:
    pen = read_evaluations(run_file(tmp_path / "0", (1, 0, 0.2)))
    door = read_evaluations(run_file(tmp_path / "1", (1, 0, 0.3), env="door"))
    other = read_evaluations(run_file(tmp_path / "2", (1, 0, 0.4)), label="wider")
    curves = make_curves(merge([("a", pen), ("b", door), ("c", other)]), metric="success_final", axis="env_steps")
    assert [(c.env, c.label, c.mean) for c in curves] == [
        ("pen", "paper", (0.2,)),
        ("door", "paper", (0.3,)),
        ("pen", "wider", (0.4,)),
    ]


def test_a_seed_that_would_count_twice_is_refused(tmp_path: Path) -> None:
    rows = read_evaluations(run_file(tmp_path / "0", (1, 0, 0.2)))
    with pytest.raises(EvaluationsError, match="seed 0 of pen, paper is in one and in two"):
        merge([("one", rows), ("two", rows)])


def test_of_two_evaluations_at_one_point_the_last_counts(tmp_path: Path) -> None:
    rows = read_evaluations(run_file(tmp_path / "0", (1, 0, 0.2), (5, 5000, 0.3), (6, 5000, 0.7)))
    (curve,) = make_curves(rows, metric="success_final", axis="env_steps")
    assert curve.mean == (0.2, 0.7)


def test_the_merged_file_has_the_named_columns_and_is_read_back_equal(tmp_path: Path) -> None:
    first = read_evaluations(run_file(tmp_path / "0", (0, 0, 0.0), (1, 0, 0.1 + 0.2), (2, 5000, 0.5)))
    second = read_evaluations(run_file(tmp_path / "1", (1, 0, 0.25), seed=1), label="wider")
    merged = merge([("a", first), ("b", second)])
    write_rows(tmp_path / "merged.csv", merged)
    assert read_evaluations(tmp_path / "merged.csv") == merged
    with (tmp_path / "merged.csv").open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert tuple(header) == COLUMNS
    assert [line[:4] for line in lines] == [
        ["pen", "paper", "0", "0"], ["pen", "paper", "0", "5000"], ["pen", "wider", "1", "0"],
    ]  # fmt: skip


def test_an_environment_without_success_can_be_plotted_by_its_return(tmp_path: Path) -> None:
    path = tmp_path / "0"
    path.write_text(f"{HEADER}\nPendulum-v1,locomotion,0,1,0,10,,,,-1200.5,200.0,50,1.5,1700000000.0\n")
    rows = read_evaluations(path)
    (curve,) = make_curves(rows, metric="episode_return", axis="env_steps")
    assert curve.mean == (-1200.5,)
    with pytest.raises(EvaluationsError, match=r"has no success_final.*choose --metric episode_return"):
        make_curves(rows, metric="success_final", axis="env_steps")


def test_seeds_without_a_common_point_are_refused(tmp_path: Path) -> None:
    rows = merge([
        ("a", read_evaluations(run_file(tmp_path / "0", (1, 0, 0.2)))),
        ("b", read_evaluations(run_file(tmp_path / "1", (2, 7, 0.2), seed=1))),
    ])  # fmt: skip
    with pytest.raises(EvaluationsError, match="seeds 0, 1 have no evaluation point in common"):
        make_curves(rows, metric="success_final", axis="env_steps")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pen,paper,0,1", "pen,paper,-3,1", r"line 2: seed: expected a whole number from 0 on, got '-3'"),
        ("1000,0.5,0.5", "1000,1.5,0.5", r"line 2: success_any: expected a share from 0 to 1, got '1.5'"),
        ("-90.5", "nan", r"line 2: episode_return: expected a finite number, got 'nan'"),
        ("-90.5", "", r"line 2: episode_return: expected a finite number, got ''"),
        ("pen,", ",", r"line 2: env: expected a name, got nothing"),
        (",50,1.5,1700000000.0", "", r"line 2: episodes: expected a whole number from 0 on, got None"),
        ("grad_steps", "updates", r"missing grad_steps"),
        ("pen,", '"pen,', r"expected a CSV file"),
        ("pen,paper,0,1,", "pen,paper,0,0,", r"expected at least one evaluation of a trained policy"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = run_file(tmp_path / "e.csv", (1, 0, 0.5))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(EvaluationsError, match=message):
        read_evaluations(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\x00")
    with pytest.raises(EvaluationsError, match="expected a CSV file"):
        read_evaluations(path)
