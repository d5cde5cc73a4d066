"""The page of commands and settings is what the program says of itself."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.reference_page import page
from learner.config import LearnerConfig
from replay_service.config import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m launcher.reference_page docs/commands.md"


def test_a_command_line_parsed_before_leaves_no_trace_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = page()
    assert main(["report", "no-such-run"]) == 2
    capsys.readouterr()
    assert page() == before


@pytest.mark.parametrize("table", [(LearnerConfig, "learner."), (RunConfig, "")])
def test_it_has_every_setting(table: tuple[type, str]) -> None:
    config, prefix = table
    text = page()
    for item in fields(config):
        if item.name not in ("environment", "replay"):  # tables of their own
            assert f"`--{prefix}{item.name.replace('_', '-')}" in text, item.name
