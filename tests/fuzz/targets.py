"""What a fuzzer throws bytes at: whatever comes, each answers, or says in one line what is wrong.

Anything else is a find.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields

from unbroken.backends import fault
from unbroken.drivers import url
from unbroken.errors import ConfigurationError
from unbroken.ledger import statements
from unbroken.net import last_words
from unbroken.pool.arguments import take_settings
from unbroken.settings import Settings
from unbroken_drill.drill import project
from unbroken_drill.drill.apps import plan
from unbroken_drill.proxy import addresses, control
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.mysql import MySQLReader
from unbroken_drill.proxy.postgresql import PostgreSQLReader

SECRET = "tr0ub4dor"
_NAMES = tuple(field.name for field in fields(Settings))


def _is_plain(error: ConfigurationError) -> None:
    text = str(error)
    assert SECRET not in text, "the password is in the message"
    assert "\n" not in text, "the message has more than one line"


def database_url(data: bytes) -> None:
    """A URL is refused in plain words, or means the same when it is written again."""
    text = data.decode(errors="surrogateescape")
    for given in (text, f"mysql://app:{SECRET}@{text}", f"postgresql+psycopg://app:{SECRET}{text}"):
        try:
            target = url.parse(given)
        except ConfigurationError as error:
            if SECRET not in text and given.count(SECRET) == 1 and "@" not in text:
                _is_plain(error)
            continue
        assert url.parse(url.render(target)) == target, (
            "it means something else when it is written again"
        )
        assert SECRET not in repr(target) or SECRET in text
        assert SECRET not in target.label or SECRET in text


def pool_settings(data: bytes) -> None:
    """Settings, by name and in a URL's query."""
    text = data.decode(errors="replace")
    name, _, value = text.partition("=")
    for given in ({name: value}, {_NAMES[len(name) % len(_NAMES)]: value}):
        try:
            settings = Settings.of(
                **Settings.from_text({key: word for key, word in given.items() if key in _NAMES})
            )
        except ConfigurationError:
            continue
        assert settings.max_size >= 1
        assert settings.connect_timeout > 0
    try:
        _target, ours = take_settings(f"sqlite:///x?{text}", {})
        Settings.of(**ours)
    except ConfigurationError:
        pass


def server_words(data: bytes) -> None:
    """What a server said before it hung up: any bytes at all."""
    for backend in ("mysql", "mariadb", "postgresql", "sqlite"):
        words = last_words.parse(data, backend)
        if words is not None:
            assert all(character.isprintable() for character in words.text), (
                "control characters would reach a log"
            )
            assert len(words.text) <= 1000
            fault.cause_of_words(words.code, words.text, backend)


def sql(data: bytes) -> None:
    """A statement's kind: it never raises, and no more than its first word is told."""
    for text in (data, data.decode(errors="replace"), data.decode("latin-1")):
        assert isinstance(statements.kind(text), statements.Kind)
        word = statements.verb(text)
        assert word == "statement" or (word.isalpha() and word.isascii())


def control_request(data: bytes) -> None:
    """The proxy's control port: a body and a query."""
    verb = control.VERBS[len(data) % len(control.VERBS)]
    try:
        control.arguments(verb, control.body(data))
    except ConfigurationError:
        pass
    try:
        after, wait = control.query(data.decode("latin-1"))
    except ConfigurationError:
        return
    assert isinstance(after, int)
    assert 0.0 <= wait <= 30.0


def proxy_address(data: bytes) -> None:
    """What the proxy is told to stand before."""
    text = data.decode(errors="replace")
    here = addresses.Address("127.0.0.1", 4000)
    for given in (text, f"mysql://app:{SECRET}@{text}", f"mongodb://app:{SECRET}@{text}"):
        for read in (addresses.of_url, lambda url: addresses.through(url, here)):
            try:
                read(given)
            except (ConfigurationError, ProxyError) as error:
                if SECRET not in text and "@" not in text:
                    _is_plain(error)
    try:
        addresses.address(text, "upstream")
    except ConfigurationError:
        pass


def _pieces(data: bytes, sizes: bytes) -> Iterator[bytes]:
    """*data* cut by *sizes*, one after the other."""
    at = number = 0
    while at < len(data):
        size = 1 + (sizes[number % len(sizes)] if sizes else len(data))
        yield data[at : at + size]
        at, number = at + size, number + 1


def _listened(
    make: Callable[[], MySQLReader | PostgreSQLReader], talk: list[tuple[bool, bytes]]
) -> list[str]:
    reader, heard = make(), []
    for is_client, data in talk:
        if is_client:
            heard += [spoken.text for spoken in reader.up(data)]
        else:
            for answer in reader.down(data):
                assert 0 <= answer.at <= len(data), "an answer ends where nothing came"
    return heard


def wire(data: bytes) -> None:
    """The proxy's readers: any bytes from either side, in any pieces, and the pieces make no
    difference to what was said.
    """
    sizes, _, rest = data.partition(b"|")
    client, _, server = rest.partition(b"||")
    whole = [(False, server), (True, client)]
    cut = [
        *((False, piece) for piece in _pieces(server, sizes)),
        *((True, piece) for piece in _pieces(client, sizes)),
    ]
    for make in (MySQLReader, PostgreSQLReader):
        assert _listened(make, whole) == _listened(make, cut), (
            "cut into pieces it says something else"
        )


def drill_words(data: bytes) -> None:
    """What the drill is told on its command line, and in a project's file."""
    text = data.decode(errors="replace")
    for read in (lambda: plan.variant(text, 0), lambda: plan.database_variable(text), lambda: plan.header(text),  # noqa: E501
                 lambda: plan.target(text, "GET", None, {})):  # fmt: skip
        try:
            read()
        except ConfigurationError:
            pass
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    try:
        project._options(document)
    except ConfigurationError:
        pass


#: What each begins with: one example of each shape that it knows.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "database_url": (
        b"mysql+pymysql://app:p%40ss@[::1]:3306/shop?charset=utf8mb4",
        b"db/shop?host=/run/pg",
        b"sqlite:////tmp/x?uri=1",
    ),
    "pool_settings": (
        b"max_size=5",
        b"max_age=none&reset=rollback",
        b"reclaim=true",
        b"keepalive=1e3",
    ),
    "server_words": (
        b"\x20\x00\x00\x00\xff\xbf\x0f#HY000The client was disconnected",
        b"E\x00\x00\x00\x30SFATAL\x00VFATAL\x00C57P01\x00Mterminating connection\x00\x00",
    ),
    "sql": (
        b"INSERT INTO t VALUES ('x', $$y$$) -- z",
        b"/*!50000 COMMIT */; SELECT 1",
        b"WITH a AS (DELETE FROM t RETURNING *) SELECT 1",
    ),
    "control_request": (
        b'{"statement": "COMMIT", "times": 2}',
        b'{"pattern": "(a+"}',
        b"after=12&wait=5",
    ),
    "proxy_address": (
        b"127.0.0.1:3306",
        b"[::1]:5432/shop",
        b"/run/mysqld.sock",
        b"host1:27017,host2/db?replicaSet=a",
    ),
    "wire": (
        b"\x00\x03|\x4a\x00\x00\x00\x0a8.0\x00"
        + bytes(40)
        + b"||\x20\x00\x00\x01"
        + bytes(32)
        + b"\x07\x00\x00\x00\x03COMMIT",
        b"\x01|R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I||\x00\x00\x00\x08\x00\x03\x00\x00Q\x00\x00\x00\x0bCOMMIT\x00",
    ),
    "drill_words": (
        b"plain: A=1 gunicorn app:app",
        b"DB_URL=mysql://{user}@{host}",
        b"POST http://127.0.0.1:{port}/x",
        b'[compare]\nplain = "x"',
    ),
}

TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        database_url,
        pool_settings,
        server_words,
        sql,
        control_request,
        proxy_address,
        wire,
        drill_words,
    )
}
