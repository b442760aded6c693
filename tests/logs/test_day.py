"""What a day of small and large events logs does not depend on how many callers met them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken.logs import allowance

from .day import day

#: Words of each event, and how many lines may have them.
LINES = {
    "is down": 2, "is back after": 2, "is run again": 2, "did not run": 2, "was forked": 1,
    "has been held": 1,
}  # fmt: skip


@pytest.mark.parametrize(("rate", "callers"), [(20.0, 3), (150.0, 15)])
def test_a_day_of_log_is_short_however_many_callers_there_are(
    rate: float, callers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "SHORTEST", 0.5)
    lines, told = day(tmp_path / "log", outage=1.5, rate=rate, callers=callers, leak_after=1.0)
    assert told["OutageError"] > rate / 2
    assert len(lines) <= 20, "\n".join(lines)
    for words, most in LINES.items():
        found = [line for line in lines if words in line]
        assert 1 <= len(found) <= most, (words, lines)
    (back,) = [line for line in lines if "is back after" in line][-1:]
    assert f"{told['OutageError']:,} callers turned away" in back
