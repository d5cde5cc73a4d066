"""A path that can hold no file is refused before the work, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher import cli
from launcher.whole_file import require_writable, require_writable_beside, whole_file
from replay_service.errors import ConfigError


@pytest.mark.parametrize("name", [".", "/", "folder", "folder/", "..", ""])
def test_a_folder_is_refused_as_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot be written: expected the name of a file, got a folder"):
        require_writable(Path(name))
    with (
        pytest.raises(ConfigError, match="cannot be written: expected the name of a file, got a folder"),
        whole_file(Path(name)),
    ):
        raise AssertionError("the work has begun")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_a_file_is_taken_and_a_folder_beside_which_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new" / "file"):
        require_writable(path)
        with whole_file(path) as partial:
            partial.write_text("written")
        assert path.read_text() == "written"
    require_writable_beside(tmp_path / "new")


@pytest.mark.parametrize("name", ["pipe", "link to the pipe"])
def test_what_is_there_and_no_file_keeps_its_place(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to the pipe").symlink_to("pipe")
    told = "cannot be written: expected the name of a file, got a device, a pipe or a socket"
    with pytest.raises(ConfigError, match=told):
        require_writable(tmp_path / name)
    with pytest.raises(ConfigError, match=told), whole_file(tmp_path / name):
        raise AssertionError("the work has begun")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("leads_to", ["elsewhere/page.txt", "not/yet/there.txt"])
def test_a_link_stays_and_the_file_that_it_leads_to_is_written(leads_to: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "page.txt").write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to(leads_to)
    require_writable(link)
    with whole_file(link) as partial:
        assert partial.suffix == ".html"  # as the user named it
        partial.write_text("written")
    assert link.is_symlink()
    assert (tmp_path / leads_to).read_text() == "written"
    assert list((tmp_path / leads_to).parent.iterdir()) == [tmp_path / leads_to]


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"), whole_file(tmp_path / "link"):
        raise AssertionError("the work has begun")


def test_demonstrations_are_refused_a_folder_before_anything_is_cloned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The source is missing too: cloning, had it begun, would have named it.
    words = ["dataset", "demos", "--env", "pen", "--source", "/no/such/expert", "--noise-std", "0.1"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 2
    assert (
        capfd.readouterr().err == f"error: {tmp_path}: cannot be written: expected the name of a file, got a folder\n"
    )
