"""The cache of the drill is its user's alone, and can be removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unbroken import cli
from unbroken_drill.servers import ServerUnavailable, folders, processes


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test's own."""
    monkeypatch.setattr(folders, "base_folder", lambda: tmp_path)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_look_into_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folders.cache_folder()
    assert cache == base / f"unbroken-cache-{os.geteuid()}"
    assert mode(cache) == (0o700 if os.geteuid() else 0o710)
    monkeypatch.setattr(processes, "server_user", lambda: None)
    cache.chmod(0o755)  # as an older version made it
    assert mode(folders.cache_folder()) == 0o700


@pytest.mark.parametrize("kind", ["a link", "others may write", "another's"])
def test_the_folder_of_somebody_else_is_refused(
    base: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = base / f"unbroken-cache-{os.geteuid()}"
    if kind == "a link":
        (base / "elsewhere").mkdir()
        place.symlink_to(base / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "others may write" else 0o700)
    if kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(place, 12345, 12345)
    for use in (folders.cache_folder, folders.cache_size, folders.remove_cache):
        with pytest.raises(ServerUnavailable, match="is not private to this user"):
            use()
    assert place.exists()


def test_it_is_removed_on_demand(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["drill", "--clean"])
    assert end.value.code == 0
    assert "no cache at" in capsys.readouterr().out
    cache = folders.cache_folder()
    (cache / "x").mkdir()
    (cache / "x" / "y").write_bytes(bytes(3_000_000))
    with pytest.raises(SystemExit) as end:
        cli.main(["drill", "--clean"])
    assert end.value.code == 0
    assert f"removed {cache}, 3 MB" in capsys.readouterr().out.replace("\n", "")
    assert list(base.iterdir()) == []
    with pytest.raises(SystemExit) as end:
        cli.main(["drill", "--clean", "--scenarios", "kill"])
    assert end.value.code == 2
    assert "--clean takes no other option" in capsys.readouterr().err
