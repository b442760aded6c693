"""Whatever is given in place of a URL, a setting, Django's DATABASES or a command line: each body
takes it, or refuses it in one line and within a second. There is no server, no traceback, no wait.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
import pymongo.errors
import pytest
import sqlalchemy.exc
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
from unbroken import AsyncPool, ConfigurationError, Pool, cli, launcher
from unbroken.hints import _MEANT
from unbroken.integrations.django import checks
from unbroken.integrations.web.settings import HttpSettings
from unbroken.peewee import PooledMySQLDatabase, PooledPostgresqlDatabase, connect
from unbroken_drill import proxy_command
from unbroken_drill.drill.run import Drill

SECRET = "Pl4nted-S3cret"
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

#: What a body's own framework raises for what is wrong with its own arguments.
THEIRS = (sqlalchemy.exc.ArgumentError, pymongo.errors.ConfigurationError, ImproperlyConfigured,
          pymongo.errors.InvalidURI, peewee.ImproperlyConfigured)  # fmt: skip

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from([
        10**400, -(10**400), 10**5000, math.nan, math.inf, -math.inf, 1e300, -0.0, "5", "many", "",
        1.5, 1 + 2j, object(), Path("/tmp/x"), [], {}, (1,), {"a": 1}, b"5", int, len,
    ]),
)  # fmt: skip
NAMES = sorted(unbroken.Settings.__dataclass_fields__)
ALPHABET = ":/@?#[]%&=,;+.- '\"\\\n\t\0{}$aZ09é\udc80"


def edited(text: str, at: float, insert: str, gone: int) -> str:
    place = int(at * len(text))
    return text[:place] + insert + text[place + gone :]


def near(texts: list[str]) -> st.SearchStrategy[str]:
    """One of *texts* with a piece left out, put in or exchanged."""
    piece = st.text(alphabet=ALPHABET, max_size=3)
    return st.builds(edited, st.sampled_from(texts), st.floats(0, 1), piece, st.integers(0, 4))


def within_a_second(work: Callable[[], Any]) -> Any:
    """What *work* gives. A busy machine may need another try; whatever waits needs it each time."""
    for _ in range(3):
        started = time.monotonic()
        done = work()
        if time.monotonic() - started < 1:
            return done
    raise AssertionError("it took more than a second, three times")


def outcome(make: Callable[[], Any]) -> Exception | None:
    """What *make* is refused with; None if it is taken."""
    return within_a_second(lambda: tried(make))


def tried(make: Callable[[], Any]) -> Exception | None:
    refused, made = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make()
    except (ConfigurationError, *THEIRS) as error:
        refused = error
    if refused is None:
        if isinstance(made, Pool):
            made.close(0)
    elif isinstance(refused, ConfigurationError):
        assert "\n" not in str(refused)
        assert SECRET not in str(refused)
    return refused


URLS = [
    f"mysql+pymysql://app:{SECRET}@db:3306/shop?max_size=5",
    f"postgresql+psycopg://app:{SECRET}@[::1]:5432,db2/shop?application_name=x&leak_after=3",
    f"mariadb://app:{SECRET}@/shop?unix_socket=/run/m.sock&reclaim=true",
    f"postgres://app:{SECRET}@/shop?host=h1:1&host=h2:2&target=primary",
    "sqlite:////tmp/x.db?timeout=3",
]


@quick
@given(near(URLS))
def test_urls_of_pools(url: str) -> None:
    outcome(lambda: Pool(url))
    outcome(lambda: AsyncPool(url.replace("pymysql", "aiomysql").replace("psycopg", "asyncpg")))


@quick
@given(ODD)
def test_what_is_no_url(value: Any) -> None:
    for make in (Pool, AsyncPool, connect):
        assert outcome(lambda make=make: make(value)) is not None


@quick
@given(near([url.replace("?", "?plugin=unbroken&") for url in URLS[:4]]))
def test_urls_of_engines(url: str) -> None:
    try:
        read = make_url(url)
    except Exception:  # SQLAlchemy cannot read it, and says so itself
        return
    if "plugin" in read.query:
        outcome(lambda: create_engine(read))
        outcome(lambda: create_async_engine(url.replace("pymysql", "aiomysql")))


@quick
@given(near([f"mysql+pool://app:{SECRET}@db:3306/shop?max_connections=5&leak_after=3",
             f"postgresql://app:{SECRET}@h1,h2/shop?strict=true"]))  # fmt: skip
def test_urls_of_peewee(url: str) -> None:
    outcome(lambda: connect(url))


@quick
@given(
    near([f"mongodb://app:{SECRET}@h1:1,h2:2/shop?maxPoolSize=5&retryWrites=true"]),
    st.sampled_from(["outage_wait", "election_wait", "maxPoolSize", "max_size", "timeout"]),
    ODD,
)
def test_mongodb(uri: str, name: str, value: Any) -> None:
    def make(*args: Any, **kwargs: Any) -> Any:
        try:
            return unbroken.mongo.MongoClient(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise pymongo.errors.ConfigurationError("PyMongo's own") from None

    outcome(lambda: make(uri))
    outcome(lambda: make("mongodb://h", **{name: value}))
    outcome(lambda: unbroken.mongo.MongoClient(outage_wait=value))
    if not isinstance(value, str | None | tuple | list):
        assert outcome(lambda: unbroken.mongo.MongoClient(value)) is not None


OURS = st.sampled_from(NAMES)


@quick
@given(OURS, ODD, OURS, ODD)
def test_values_of_settings(name: str, value: Any, other: str, another: Any) -> None:
    given = {name: value, other: another}
    outcome(lambda: Pool(URLS[0], **given))
    outcome(lambda: AsyncPool("mysql+aiomysql://h/d", **given))
    outcome(lambda: create_engine("mysql+pymysql://h/d?plugin=unbroken", unbroken=given))
    outcome(lambda: PooledMySQLDatabase("shop", **given))
    outcome(lambda: HttpSettings.of(**given))


@quick
@given(st.one_of(near(NAMES), st.sampled_from(sorted(_MEANT))), ODD)
def test_names_of_settings(name: str, value: Any) -> None:
    if name in NAMES or not name:
        return
    assert outcome(lambda: Pool(URLS[0], **{name: value})) is not None
    assert outcome(lambda: AsyncPool("mysql+aiomysql://h/d", **{name: value})) is not None
    engine = "mysql+pymysql://h/d?plugin=unbroken"
    assert outcome(lambda: create_engine(engine, unbroken={name: value})) is not None
    assert outcome(lambda: HttpSettings.of(**{name: value})) or name in HttpSettings.__slots__


@quick
@given(st.sampled_from(["pool_size", "max_overflow", "pool_timeout", "pool_recycle",
                        "pool_reset_on_return", "unbroken", "connect_args"]), ODD)  # fmt: skip
def test_arguments_of_engines(name: str, value: Any) -> None:
    outcome(lambda: create_engine("mysql+pymysql://h/d?plugin=unbroken", **{name: value}))


@quick
@given(st.sampled_from(["max_connections", "stale_timeout", "timeout", "host", "port", "strict"]),
       ODD)  # fmt: skip
def test_arguments_of_peewee(name: str, value: Any) -> None:
    for make in (PooledMySQLDatabase, PooledPostgresqlDatabase):
        outcome(lambda make=make: make("shop", **{name: value}))


WEB = sorted(HttpSettings.__dataclass_fields__)


@quick
@given(st.sampled_from(WEB), ODD)
def test_web_layers(name: str, value: Any) -> None:
    outcome(lambda: HttpSettings.of(**{name: value}))
    outcome(lambda: unbroken.flask.Unbroken(**{name: value}))
    outcome(lambda: unbroken.flask.Unbroken(commit=value))
    outcome(lambda: unbroken.flask.Unbroken(sessions=value))
    outcome(lambda: unbroken.wsgi.Unbroken(lambda _env, _start: [], **{name: value}))
    outcome(lambda: unbroken.asgi.Unbroken(lambda *_: None, **{name: value}))


@quick
@given(st.sampled_from(["connect", "driver", "password", "user"]), ODD)
def test_keywords_of_pools(name: str, value: Any) -> None:
    more = {"driver": "pymysql"} if name == "connect" else {"url": URLS[0]}
    outcome(lambda: Pool(**{name: value, **more}))
    outcome(lambda: unbroken.adopt(value).undo())
    pool = Pool(URLS[0])
    outcome(lambda: pool.resize(max_size=value) if value is None or isinstance(value, int) else 0)
    pool.close(0)


@quick
@given(near(["leak_after=10&outage_wait=20", "max_size=5", "1"]))
def test_settings_of_unbroken_run(text: str) -> None:
    outcome(lambda: launcher.settings_in(text))


PLACES = ["NAME", "USER", "PASSWORD", "HOST", "PORT", "CONN_MAX_AGE", "OPTIONS", "UNBROKEN"]


@quick
@given(st.sampled_from(["mysql", "postgresql"]), st.sampled_from(PLACES), ODD,
       st.one_of(OURS, near(NAMES)), ODD)  # fmt: skip
def test_djangos_databases(kind: str, place: str, value: Any, name: str, other: Any) -> None:
    for changed in ({place: value}, {"OPTIONS": {"unbroken": {name: other}}}):
        wrong = {"ENGINE": f"unbroken.django.{kind}", "NAME": "shop", "HOST": "db", **changed}
        connections.settings["wrong"] = connections.configure_settings(
            {"default": {}, "x": {**wrong}}
        )["x"]
        try:
            refused = outcome(lambda: connections["wrong"].unbroken_pool)
            found = [each for each in checks.check_settings() if each.id == "unbroken.E001"]
            assert found or refused is None
        finally:
            with contextlib.suppress(AttributeError):
                del connections["wrong"]
            del connections.settings["wrong"]


class PlayedError(Exception):
    """A command line was right: what it orders is not done here."""


APP = ["drill", "--url", "http://127.0.0.1:1/x", "--env", "DB", "--rate", "5", "--", "python"]
LINES = [
    APP,
    ["drill", "--scenarios", "kill,idle", "--repeat", "2", "--seed", "5", "--jobs", "1"],
    ["drill", "--servers", "postgresql", "--contenders", "one"],
    ["proxy", "127.0.0.1:5432", "--listen", "127.0.0.1:0", "--protocol", "mysql", "--seed", "3"],
    ["run", "--units", "shop.orders:Store", "python"],
]


@st.composite
def lines(draw: Any) -> list[str]:
    words = list(draw(st.sampled_from(LINES)))
    at = draw(st.integers(0, len(words) - 1))
    odd = ["", "--nope", "-1", "nan", "1e400", "99999999999999999999", "\0", "x:y", "é", "--", ","]
    return [
        *words[:at],
        *draw(st.one_of(near([words[at]]).map(lambda each: [each]),
                        st.sampled_from(odd).map(lambda each: [each]), st.just([]))),
        *words[at + 1 :],
    ]  # fmt: skip


@settings(quick, max_examples=120)
@given(lines())
def test_command_lines(words: list[str]) -> None:
    def play(*_: Any, **__: Any) -> Any:
        raise PlayedError

    def run() -> tuple[Any, str]:
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            try:
                cli.main(words)
            except PlayedError:
                return 0, ""
            except SystemExit as end:
                return end.code, err.getvalue()
        raise AssertionError("it has no exit status")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drill, "run", play)
        patch.setattr(proxy_command, "FaultProxy", play)
        patch.setattr(launcher.os, "execvpe", play)
        status, said = within_a_second(run)
    if "unexpected PlayedError" in said or status == 0:  # a right one, or one that asks for help
        return
    assert status == 2, (words, said)
    assert "Traceback" not in said
    assert "unexpected" not in said.replace("Got unexpected extra argument", ""), (words, said)
    assert said.count("\n") <= 1 or not said.startswith("unbroken:")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nope"], "unknown option '--nope'. Run 'unbroken --help'"),
        (["dril"], "unknown command 'dril' (did you mean 'drill'?)"),
        (["drill", "--nope"], "unknown option '--nope'. Run 'unbroken drill --help'"),
        (["drill", "--scenarois", "kill"], "did you mean '--scenarios'?"),
        (["drill", "--repeat"], "'--repeat' requires an argument. Run 'unbroken drill --help'"),
        (["drill", "--repeat", "x"], "'x' is not a valid integer range"),
        (["drill", "--scenarios", ","], "the list ',' is empty"),
        (["drill", "--contenders", ""], "the list '' is empty"),
        (["drill", "--contenders", "unbrokn"], "did you mean 'unbroken'?"),
        (["drill", "--servers", "postgres"], "did you mean 'postgresql'?"),
        (
            [*APP[:5], "--db", "mysql://h:99999/d", "--harm", "--", "python"],
            "--db: the port must be",
        ),
        ([*APP[:5], "--setup", "'", "--", "python"], "No closing quotation"),
        ([*APP[:5], "--setup", "no-such-program", "--", "python"], "no such program; --setup is"),
        ([*APP[:5], "--driver", "py mysql", "--", "python"], "is not the name of a driver"),
        (["proxy", "h:99999"], "the port 99999 is not a number from 1 to 65535"),
        (["proxy", "h:1", "--lsten", "x"], "did you mean '--listen'?"),
        (["run", "--unit", "x:y", "python"], "did you mean '--units'?"),
        (["run", "--", ""], "needs a command"),
        (["run", "x\0y"], "needs a command"),
    ],
)
def test_a_wrong_command_line_is_told_exactly(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert says in said
    assert said.startswith("unbroken: ")
    assert said.count("\n") == 1
