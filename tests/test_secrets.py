"""A password that was planted is in no message, log line, repr, event, pickle or report, whatever
goes wrong.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import pickle
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unbroken
from unbroken import cli
from unbroken.abc import Target
from unbroken.backends.system import one_line
from unbroken.drivers import known, open_driver
from unbroken.drivers.url import parse
from unbroken.errors import UnbrokenError
from unbroken.net.last_words import parse as parse_last_words
from unbroken_drill.servers import MariaDB, PostgreSQL, base

PLANTED = "pl4nted-s3cret+/@'x"  # what must be encoded, quoted and escaped on its way
PIECES = (PLANTED, quote(PLANTED, safe=""), "pl4nted", "s3cret")

SCHEMES = [
    (each.name, each.schemes[0], each.sync, each.asynchronous)
    for each in known()
    if each.name != "sqlite"
]
BODIES = [
    pytest.param(scheme, is_async, id=f"{name}{'-async' if is_async else ''}")
    for name, scheme, sync, asynchronous in SCHEMES
    for is_async in (False, True)
    if (asynchronous if is_async else sync)
]


class Evidence:
    """Everything that unbroken says, to whomever."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.handler = logging.Handler(logging.DEBUG)
        self.handler.emit = lambda record: self.said.append(
            logging.Formatter("%(message)s").format(record)
        )  # type: ignore[method-assign]

    def add(self, *things: object) -> None:
        for thing in things:
            self.said += [str(thing), repr(thing)]

    def error(self, error: BaseException) -> None:
        self.add(error)
        self.said.append("".join(traceback.format_exception(error)))
        self.said.append(repr(getattr(error, "__dict__", {})))
        if isinstance(error, UnbrokenError):
            self.said.append(repr(pickle.dumps(error)))

    def search(self) -> list[str]:
        return [text[:300] for text in self.said if any(piece in text for piece in PIECES)]


@pytest.fixture
def evidence() -> Iterator[Evidence]:
    found = Evidence()
    logger = logging.getLogger("unbroken")
    level = logger.level
    logger.addHandler(found.handler)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.removeHandler(found.handler)
    logger.setLevel(level)
    assert found.search() == []
    assert found.said


def test_what_leaks_is_found() -> None:
    evidence = Evidence()
    evidence.add("nothing of it", {"password": "***"})
    assert evidence.search() == []
    for leak in (
        PLANTED,
        ValueError(f"cannot connect as u:{quote(PLANTED, safe='')}"),
        {"password": PLANTED},
    ):
        evidence.said.clear()
        evidence.add(leak)
        assert evidence.search()


def provoke(evidence: Evidence, url: str, is_async: bool, **options: Any) -> None:
    """Try to use a pool of *url*; whatever it says is evidence."""

    def look(pool: Any, error: BaseException | None) -> None:
        evidence.add(pool, pool.settings, pool._driver.target, pool.stats())
        if "password" in options:
            evidence.add(vars(pool._driver), pool._secrets)
        evidence.said.append(json.dumps(dataclasses.asdict(pool.stats()), default=str))
        if error is not None:
            evidence.error(error)

    options = {
        "acquire_timeout": 1.0,
        "outage_wait": 0.3,
        "observers": (lambda *event: evidence.add(event),),
        **options,
    }

    async def asynchronous() -> None:
        async with unbroken.AsyncPool(url, **options) as pool:
            try:
                await pool.release(await pool.acquire())
            except Exception as error:
                look(pool, error)
            look(pool, None)

    def blocking() -> None:
        with unbroken.Pool(url, **options) as pool:
            try:
                pool.release(pool.acquire())
            except Exception as error:
                look(pool, error)
            look(pool, None)

    asyncio.run(asynchronous()) if is_async else blocking()


@pytest.mark.parametrize(("scheme", "is_async"), BODIES)
def test_a_password_that_a_callable_gives(
    evidence: Evidence, scheme: str, is_async: bool, mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    """Also what the driver's object has in its attributes, and what the errors' tracebacks say."""
    server = postgres if scheme.startswith("postgresql") else mariadb
    url = f"{scheme}://{server.user}@127.0.0.1:{server.port}/{server.database}"
    reads: list[Any] = [
        lambda: PLANTED,
        functools.partial(str, PLANTED),  # its repr has it in it
        lambda: PLANTED.encode(),
        lambda: [PLANTED],
    ]
    for read in reads:
        provoke(evidence, url, is_async, password=read)


@pytest.mark.parametrize(("scheme", "is_async"), BODIES)
def test_a_password_that_the_server_refuses(
    evidence: Evidence, scheme: str, is_async: bool, mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    server = postgres if scheme.startswith("postgresql") else mariadb
    for user in (server.user, "nobody-here"):
        provoke(
            evidence,
            f"{scheme}://{user}:{quote(PLANTED, safe='')}@127.0.0.1:{server.port}/{server.database}",  # noqa: E501
            is_async,
        )


@pytest.mark.parametrize(("scheme", "is_async"), BODIES)
def test_a_server_that_is_not_there_or_hangs_up(
    evidence: Evidence, scheme: str, is_async: bool
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: refused
        provoke(
            evidence,
            f"{scheme}://u:{quote(PLANTED, safe='')}@127.0.0.1:{nobody.getsockname()[1]}/d",
            is_async,
        )
    provoke(evidence, f"{scheme}://u:{quote(PLANTED, safe='')}@no-such-host.invalid/d", is_async)


@pytest.mark.parametrize(("scheme", "is_async"), BODIES)
def test_a_url_that_cannot_work(evidence: Evidence, scheme: str, is_async: bool) -> None:
    secret = quote(PLANTED, safe="")
    for url in (
        f"{scheme}://u:{secret}@h/d?no_such_option=1",
        f"{scheme}://u:{secret}@h/d?connect_timeout=soon",
        f"{scheme}://u:{secret}@h:99999/d",
        f"{scheme}://u:{secret}@[::1/d",
        f"{scheme}://u:{PLANTED}@h/d",
        f"{scheme}s://u:{secret}@h/d",
        f"{scheme}://u:{secret}@h/d?max_size=-{1}",
    ):
        try:
            evidence.add(open_driver(url, is_async=is_async).target)  # type: ignore[call-overload]
        except UnbrokenError as error:
            evidence.error(error)
        try:
            (unbroken.AsyncPool if is_async else unbroken.Pool)(url)
        except UnbrokenError as error:
            evidence.error(error)


def test_a_real_drills_report(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    evidence: Evidence,
) -> None:
    monkeypatch.setattr(base.secrets, "token_urlsafe", lambda _: PLANTED)
    report = tmp_path / "report.json"
    with pytest.raises(SystemExit):
        cli.main(
            [
                "drill",
                "--contenders",
                "unbroken,one",
                "--scenarios",
                "kill",
                "--verbose",
                "--json",
                str(report),
            ]
        )
    evidence.said += [report.read_text(), *capfd.readouterr()]
    assert '"kill"' in report.read_text()


@given(
    st.text(),
    st.text(min_size=8).filter(
        lambda secret: secret.split() == [secret] and "*" not in secret and not secret.isalpha()
    ),
    st.text(),
)
def test_one_line_never_holds_the_secret_that_it_was_told_of(
    before: str, secret: str, after: str
) -> None:
    """A long one is masked inside of other words, too."""
    line = one_line(f"{before}{secret}{after}", secret)
    assert "\n" not in line
    assert secret not in line or secret in one_line(f"{before}***{after}") or _is_plain(secret)


def _is_plain(secret: str) -> bool:
    return secret.replace(".", "").isdecimal()


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=6),
    st.sampled_from([s for _, s, *_ in SCHEMES]),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_target_shows_no_password_whatever_it_is(password: str, scheme: str) -> None:
    target = parse(f"{scheme}://user:{quote(password, safe='')}@host:1234/database")
    assert target.password == password
    shown = f"{target!r} {target} {target.label} {target.server}"
    nothing = Target(scheme, target.backend, "host", 1234, None, "user", None, "database")
    assert shown == f"{nothing!r} {nothing} {nothing.label} {nothing.server}"


@given(st.binary(max_size=400), st.sampled_from(["mysql", "mariadb", "postgresql"]))
@settings(max_examples=500)
def test_last_words_of_any_bytes_are_words_or_nothing(data: bytes, backend: str) -> None:
    words = parse_last_words(data, backend)
    assert words is None or (isinstance(words.text, str) and words.code is not None)
