"""Each message has a code that leads to a page which says what is true, known, and to be done."""

from __future__ import annotations

import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import (
    ConfigurationError,
    OutageError,
    PoolTimeoutError,
    UnbrokenError,
    WriteUnknownError,
    for_driver,
)
from unbroken.messages import Message
from unbroken.messages.configuration import UNKNOWN_SETTING
from unbroken.messages.data import WRITE_UNKNOWN
from unbroken.messages.pool import POOL_TIMEOUT
from unbroken.messages.server import OUTAGE
from unbroken.settings import Settings
from unbroken_drill.fake_server import FakeOperationalError

ROOT = Path(__file__).parents[1]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "messages-page"))
GROUPS: dict[str, dict[str, Message]] = SCRIPT["catalogue"]()
ALL = [(group, name, each) for group, found in GROUPS.items() for name, each in found.items()]


@pytest.fixture(scope="module")
def sites() -> list[Any]:
    """All places that tell something.

    Reading all sources takes seconds: only the worker that runs this file does it.
    """
    found: list[Any] = SCRIPT["sites"]()
    return found


def test_every_error_note_warning_and_log_line_of_ours_has_a_code(sites: list[Any]) -> None:
    assert [f"{site.path}:{site.line}" for site in sites if not site.names] == []
    assert len(sites) > 300


#: The files whose messages speak of what became of data, and by whose word.
SPEAK_OF_DATA = {
    "pool/finishing.py": "the ledger's or the driver's (what_is_left); else under a condition",
    "pool/loan.py": "the ledger's fate",
    "pool/replay.py": "the ledger's verdict",
    "integrations/django/wrapper.py": "what_is_left",
    "integrations/django/blocks.py": "the connection is closed by the same call, before a COMMIT",
    "integrations/django/transactions.py": "likewise",
    "integrations/mongo/errors.py": "in doubt, whatever happened",
    "integrations/web/flask.py": "of what failed to be done, not of data",
}


def test_a_message_about_data_is_told_by_the_ledgers_word_only(sites: list[Any]) -> None:
    claims = re.compile(
        r"\b(stored|undone|undid|rolled back|sent|committed)\b|\{(left|LOOK_FIRST|what_is_left)\}"
    )
    found = {
        site.path.removeprefix("src/unbroken/")
        for site in sites
        if site.path.startswith("src/unbroken/") and any(map(claims.search, site.texts))
    }
    assert found - {"pool/bounds.py"} == set(SPEAK_OF_DATA)  # there the words are a function's name


def test_every_code_is_used_and_none_stands_twice(sites: list[Any]) -> None:
    assert {name for _, name, _ in ALL} - {name for site in sites for name in site.names} == set()
    codes = [each.code for _, _, each in ALL]
    assert len(codes) == len(set(codes))
    assert len(ALL) == len({name for _, name, _ in ALL})


@pytest.mark.parametrize("group", GROUPS)
def test_codes_are_those_of_their_group_in_order(group: str) -> None:
    codes = [each.code for each in GROUPS[group].values()]
    heading = SCRIPT["GROUPS"][group]
    first = re.match(r"UB(\d)", heading)
    assert first is not None
    assert all(re.fullmatch(rf"UB{first[1]}\d\d", code) for code in codes), codes
    assert codes == sorted(codes)


@pytest.mark.parametrize(("group", "name", "each"), ALL, ids=lambda given: str(given)[:40])
def test_each_says_whole_sentences(group: str, name: str, each: Message) -> None:
    del group, name
    for text in (each.title, each.known, each.do):
        assert text[0].isupper() or text[0] == "`" or text.startswith("unbroken")
        assert text.endswith((".", ".)", "?"))
        assert "  " not in text


def test_the_page_is_what_the_sources_say() -> None:
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](), "run scripts/messages-page"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("raise OutageError('x')", ()),
        ("raise OutageError(OUTAGE('x'))", ("OUTAGE",)),
        ("raise state.error(OutageError, f'{x}')", ()),
        ("raise state.error(OutageError, OUTAGE(f'{x}'), retry_after=1.0)", ("OUTAGE",)),
        ("for_driver(OutageError, foreign, 'x')", ()),
        ("error.add_note('x')", ()),
        ("warnings.warn('x')", ()),
        ("log.warning('%s', x)", ()),
        ("log.exception(OUTAGE('%s') if x else 'y', x)", ()),
        ("log.log(logging.WARNING, 'x')", ()),
        ("from unbroken.logs import Part\nlog.warning('began', f'{x}')", ()),
        ("from unbroken.logs import Part\nlog.error('began', OUTAGE(f'{x}'))", ("OUTAGE",)),
    ],
)
def test_a_message_without_a_code_is_found(source: str, names: tuple[str, ...]) -> None:
    import ast

    tree = ast.parse(source)
    by_parts = SCRIPT["logs_by_parts"](tree)
    found = list(SCRIPT["_in"]("x.py", tree, (), SCRIPT["errors"](), {"OUTAGE"}, by_parts=by_parts))
    assert [site.names for site in found] == [names]


def test_an_error_knows_its_code_as_every_class_and_after_a_journey() -> None:
    text = POOL_TIMEOUT("no connection within 1.0 s")
    assert text == "no connection within 1.0 s [UB201]"
    for error in (
        PoolTimeoutError(text),
        for_driver(PoolTimeoutError, FakeOperationalError, text),
        pickle.loads(pickle.dumps(for_driver(PoolTimeoutError, ConnectionError, text))),
    ):
        assert (error.code, str(error)) == ("UB201", text)


def test_a_text_is_not_given_the_same_code_twice() -> None:
    assert OUTAGE(OUTAGE("away")) == "away [UB301]"


@pytest.mark.parametrize("text", ["", "away", "[UB301] at its beginning", "[UB]", "[UB30x]"])
def test_an_error_that_somebody_else_made_has_no_code(text: str) -> None:
    assert OutageError(text).code is None
    assert UnbrokenError().code is None


def test_the_code_at_the_end_is_the_errors_own_not_one_of_those_that_it_quotes() -> None:
    inner = UNKNOWN_SETTING("unknown setting 'x'")
    assert ConfigurationError(OUTAGE(f"away: {inner}; look at it")).code == "UB301"


def test_pymongos_number_stays_what_its_callers_compare() -> None:
    errors = pytest.importorskip("pymongo.errors")
    theirs = errors.WTimeoutError("late", 64, {})
    error: Any = for_driver(WriteUnknownError, type(theirs), WRITE_UNKNOWN("it may be stored"))
    error.__dict__.update(theirs.__dict__)
    assert error.code == 64
    assert str(error).endswith("[UB405]")


def test_a_wrong_setting_says_its_code() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'max_sizes'.*\[UB101\]$") as it:
        Settings.of(max_sizes=3)
    assert it.value.code == "UB101"


def test_the_command_line_shows_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unbroken", "run"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.rstrip()[-7:]) == (2, "[UB901]")


def test_an_error_keeps_its_code_as_a_frameworks_own() -> None:
    peewee = pytest.importorskip("unbroken.integrations.peewee.errors")
    text = OUTAGE("no connection")
    told = peewee.translated(for_driver(OutageError, FakeOperationalError, text))
    assert (told.code, str(told)) == ("UB301", text)
    again = pickle.loads(pickle.dumps(for_driver(OutageError, ConnectionError, text)))
    assert (again.code, str(again)) == ("UB301", text)


def test_an_engines_error_has_the_code_beside_sqlalchemys_own() -> None:
    pytest.importorskip("sqlalchemy")
    # apart: its engine goes on asking for the server
    program = """
import sqlalchemy, unbroken
url = "postgresql+psycopg://app@127.0.0.1:1/shop?plugin=unbroken&outage_wait=0.1"
try:
    sqlalchemy.create_engine(url).connect()
except sqlalchemy.exc.DBAPIError as error:
    ours = isinstance(error, unbroken.OutageError)
    print(ours, error.code, error.orig.code, str(error)[-7:])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "UB301", "UB301", "[UB301]"]


def test_django_tells_the_code() -> None:
    pytest.importorskip("django")
    from unbroken.integrations.django.errors import translated

    told: Any = translated(for_driver(OutageError, FakeOperationalError, OUTAGE("no connection")))
    assert told.code == "UB301"
    assert str(told).endswith("[UB301]")
