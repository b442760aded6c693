"""URLs are read as SQLAlchemy reads them, and no error ever repeats a password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from unbroken.abc import Target
from unbroken.drivers.url import SCHEMES, parse, render
from unbroken.errors import ConfigurationError

SECRET = "Pl4nted_S3cret"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "mysql+pymysql://app:secret@db:3307/shop",
            Target("mysql+pymysql", "mysql", "db", 3307, None, "app", "secret", "shop"),
        ),
        (
            "mariadb+mariadbconnector://db/shop",
            Target("mariadb+mariadbconnector", "mariadb", "db", None, None, None, None, "shop"),
        ),
        ("postgres://u@h", Target("postgres", "postgresql", "h", None, None, "u")),
        ("POSTGRESQL+ASYNCPG://h/d", Target("postgresql+asyncpg", "postgresql", "h", database="d")),
        (
            "postgresql://u:p%40%2F%3A%25@h/d%20b",
            Target("postgresql", "postgresql", "h", None, None, "u", "p@/:%", "d b"),
        ),
        (
            "postgresql://u:p@[2001:db8::1]:5433/d",
            Target("postgresql", "postgresql", "2001:db8::1", 5433, None, "u", "p", "d"),
        ),
        ("postgresql://[::1]/d", Target("postgresql", "postgresql", "::1", database="d")),
        (
            "mysql://u:p@/d?unix_socket=/run/my.sock",
            Target("mysql", "mysql", None, None, "/run/my.sock", "u", "p", "d"),
        ),
        (
            "postgresql+psycopg://u@/d?host=/run/pg&port=5433",
            Target("postgresql+psycopg", "postgresql", None, 5433, "/run/pg", "u", None, "d"),
        ),
        ("postgresql:///d?host=db", Target("postgresql", "postgresql", "db", database="d")),
        ("mysql://u:p/a:s?s@h/d", Target("mysql", "mysql", "h", None, None, "u", "p/a:s?s", "d")),
        ("mysql://u:a@b@h/d", Target("mysql", "mysql", "h", None, None, "u", "a@b", "d")),
        ("mysql://u:@h/d", Target("mysql", "mysql", "h", None, None, "u", "", "d")),
        ("sqlite://", Target("sqlite", "sqlite")),
        ("sqlite:///:memory:", Target("sqlite", "sqlite")),
        ("sqlite:///shop.db", Target("sqlite", "sqlite", database="shop.db")),
        ("sqlite:////var/shop.db", Target("sqlite", "sqlite", database="/var/shop.db")),
    ],
)
def test_a_url_is_read(url: str, expected: Target) -> None:
    assert parse(url) == expected


def test_options_are_decoded() -> None:
    assert dict(parse("mysql://h/d?charset=utf8mb4&init_command=SET%20a%3D1&b=x+y").options) == {
        "charset": "utf8mb4", "init_command": "SET a=1", "b": "x y",
    }  # fmt: skip


def test_an_at_sign_in_an_option_is_no_password() -> None:
    target = parse("mysql://h:3306/d?program_name=a@b")
    assert (target.host, target.port, target.user, dict(target.options)) == (
        "h",
        3306,
        None,
        {"program_name": "a@b"},
    )


def test_neither_label_nor_repr_holds_user_or_password() -> None:
    target = parse(f"mysql://app:{SECRET}@db:3306/shop")
    assert target.label == "db:3306/shop"
    assert SECRET not in repr(target)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "not a database URL"),
        ("localhost/shop", "not a database URL"),
        ("mysq://h/d", "did you mean 'mysql'"),
        ("mysql+pymsql://h/d", "did you mean 'mysql+pymysql'"),
        ("oracle://h/d", "known:"),
        ("mysql://h:port/d", "port"),
        ("mysql://h:99999/d", "port"),
        ("mysql://a:b:c/d", "more than one ':'"),
        ("mysql://h h/d", "host"),
        ("postgresql://[::1/d", "IPv6"),
        ("postgresql://[nonsense]/d", "IPv6"),
        ("mysql://h/d?x", "?name=value"),
        ("mysql://u:12/34@h/d", "percent-encoded"),
        ("mysql://%ff@h/d", "UTF-8"),
        ("sqlite://file.db", "three slashes"),
        (f"mysql://app:{SECRET}/x", "port"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_is_no_text_is_told() -> None:
    with pytest.raises(ConfigurationError, match="must be a text"):
        parse(None)  # type: ignore[arg-type]


texts = st.text(min_size=1, max_size=20).filter(
    lambda text: not any("\ud800" <= c <= "\udfff" for c in text)
)
hosts = st.one_of(
    st.none(), st.sampled_from(["db", "db.example.com", "10.0.0.1", "::1", "2001:db8::7"])
)
servers = st.sampled_from([scheme for scheme in SCHEMES if not scheme.startswith("sqlite")])
option_names = st.from_regex(r"[a-z_][a-z_0-9]{0,10}", fullmatch=True).filter(
    lambda name: name not in ("host", "port", "unix_socket")
)


@given(
    servers, hosts, st.one_of(st.none(), st.integers(1, 65535)), texts, st.one_of(st.none(), texts), st.one_of(st.none(), texts),  # noqa: E501
    st.dictionaries(option_names, texts, max_size=3), st.one_of(st.none(), st.just("/run/server.sock")),  # noqa: E501
)  # fmt: skip
def test_what_is_written_is_read_back(
    scheme: str, host: str | None, port: int | None, user: str, password: str | None, database: str | None, options: dict[str, str],  # noqa: E501
    socket: str | None,
) -> None:  # fmt: skip
    target = Target(
        scheme,
        parse(f"{scheme}://h").backend,
        host,
        port if host else None,
        socket,
        user,
        password,
        database,
        options,
    )
    assert parse(render(target)) == target


@given(
    servers,
    hosts.filter(bool),
    st.one_of(st.none(), st.integers(1, 65535)),
    texts,
    texts,
    st.from_regex(r"[a-z_]{1,9}", fullmatch=True),
)
def test_it_is_what_sqlalchemy_reads(
    scheme: str, host: str, port: int | None, user: str, password: str, database: str
) -> None:
    where = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{where}{f':{port}' if port else ''}/{database}"  # noqa: E501
    theirs, ours = make_url(url), parse(url)
    assert (ours.host, ours.port, ours.user, ours.password, ours.database) == (
        theirs.host, theirs.port, theirs.username, theirs.password, theirs.database,
    )  # fmt: skip


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_gives_a_target_or_one_clean_line(before: str, after: str) -> None:
    for url in (
        before + after,
        f"mysql+pymysql://app:{SECRET}{before}@h{after}",
        f"{before}app:{SECRET}@{after}",
        f"postgresql://{before}:{SECRET}{after}",
    ):
        try:
            target = parse(url)
        except ConfigurationError as error:
            assert SECRET not in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert isinstance(target, Target)
