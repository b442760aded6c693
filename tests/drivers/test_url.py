"""URLs are read as SQLAlchemy reads them, and no error ever repeats a password."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from unbroken.abc import Target
from unbroken.drivers._addresses import of_framework
from unbroken.drivers.url import SCHEMES, at, parse, render
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
        ("", "the database URL is empty"),
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
        ("mysql://u:12/34@h/d", "percent-encode "),
        ("mysql://%ff@h/d", "UTF-8"),
        ("sqlite://file.db", "three slashes"),
        (f"mysql://app:{SECRET}/x", "port"),
        (f"mysql://app:{SECRET}@h:99999/d", "the port 99999 is not a number from 1 to 65535"),
        (f"mysql://app:{SECRET}@h:0/d", "the port 0 is not"),
        (f"mysql://app:{SECRET}@h:-1/d", "the port -1 is not"),
        (f"mysql://app:{SECRET}@h:3306x/d", "the port is not a number"),
        (f"mysql://app:{SECRET}@h:/d", "a ':' without a port; write the port's number"),
        (f"mysql://app@/d?host=h&port={'9' * 6}", "the port 999999 is not"),
        (f"mysql://app:{SECRET}@h h/d", "contains an invalid character (' ')"),
        (f"mysql://app:{SECRET}@h1;h2/d", "separate several hosts by commas"),
        (f"mysql://app:{SECRET}@2001:db8::1/d", "write an IPv6 address in [brackets]"),
        (f"mysql://app:{SECRET}@h1,,h2/d", "host 2 of the database URL is empty"),
        (f"mysql://app:{SECRET}@h/d\tx", "a line break, a tab"),
        (f"mysql://app:{SECRET}@h\n/d", "a line break, a tab"),
        (" \n", "the database URL is empty"),
        (f"'mysql://app:{SECRET}@h/d'", "quotation mark"),
        (f'"mysql://app:{SECRET}@h/d"', "quotation mark"),
        (f"DATABASE_URL=mysql://app:{SECRET}@h/d", "begins with NAME="),
        (f"export DB=mysql://app:{SECRET}@h/d", "begins with NAME="),
        ("${DATABASE_URL}", "the name of a variable; replace it"),
        ("%(DATABASE_URL)s", "the name of a variable; replace it"),
        ("{{ database_url }}", "the name of a variable; replace it"),
        (f"jdbc:mysql://h/d?password={SECRET}", "JDBC"),
        (f"app:{SECRET}@tcp(h:3306)/d", "a Go connection string"),
        (f"Server=h;Database=d;Uid=app;Pwd={SECRET};", "ADO.NET"),
        (f"host=h user=app password={SECRET}", "libpq"),
        (f"mysql:/app:{SECRET}@h/d", "the scheme of a URL must end with '://'"),
        (f"mysql:app:{SECRET}@h/d", "the scheme of a URL must end with '://'"),
        (SECRET, "not a database URL"),
        ("pymysql://h/d", "did you mean 'mysql+pymysql'?"),
        ("psycopg2://h/d", "did you mean 'postgresql+psycopg2'?"),
        ("mysql+mysqlclient://h/d", "did you mean 'mysql+mysqldb'?"),
        ("postgresql+psycopg3://h/d", "did you mean 'postgresql+psycopg'?"),
        ("postgres+asyncpg://h/d", "did you mean 'postgresql+asyncpg'?"),
        ("pgsql://h/d", "did you mean 'postgresql'?"),
        ("sqlite3:///d", "did you mean 'sqlite'?"),
        ("postgresql+frobnicate://h/d", "known: postgresql, postgresql+psycopg"),
        (f"mongodb://app:{SECRET}@h/d", "unbroken.mongo.MongoClient(url)"),
        ("mssql+pyodbc://h/d", "supports MySQL, MariaDB, PostgreSQL and SQLite"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_is_no_text_is_told() -> None:
    for wrong, says in (
        (None, "must be a string"),
        (b"mysql://h/d", "decode it"),
        (Path("/tmp/x.db"), "sqlite:////"),
        (make_url(f"mysql://app:{SECRET}@h/d"), "render_as_string(hide_password=False)"),
        (5, "not of type int"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            parse(wrong)  # type: ignore[arg-type]
        assert says in str(caught.value)
        assert SECRET not in str(caught.value)


SERVERS = [scheme for scheme in SCHEMES if not scheme.startswith("sqlite")]
P, M = "postgresql+psycopg", "mysql+pymysql"


@pytest.mark.parametrize("scheme", SERVERS)
@pytest.mark.parametrize(
    ("rest", "hosts"),
    [
        ("h1:1,h2:2/d", [("h1", 1), ("h2", 2)]),
        ("u:p@h1,h2/d", [("h1", None), ("h2", None)]),
        # as libpq reads it: a port belongs to the host before it
        ("h1,h2:2", [("h1", None), ("h2", 2)]),
        ("h1:1,h2?a=b@c", [("h1", 1), ("h2", None)]),
        ("[::1]:1,[2001:db8::7],h3:3/d?a=b@c", [("::1", 1), ("2001:db8::7", None), ("h3", 3)]),
        ("u@/d?host=h1:1&host=h2:2", [("h1", 1), ("h2", 2)]),
        ("u@/d?host=h1&host=h2:2&host=h3", [("h1", None), ("h2", 2), ("h3", None)]),
        (
            "u@/d?host=127.0.0.1:1&host=127.0.0.1:2",
            [("127.0.0.1", 1), ("127.0.0.1", 2)],
        ),
        ("u@/d?host=h1:1", [("h1", 1)]),
        ("u@/d?host=h1,h2&port=1,2", [("h1", 1), ("h2", 2)]),
        ("u@/d?host=h1%2Ch2&port=1%2C2", [("h1", 1), ("h2", 2)]),
        ("u@/d?host=h1,h2&port=7", [("h1", 7), ("h2", 7)]),
        ("u@/d?host=h1,h2&port=,2", [("h1", None), ("h2", 2)]),
        ("h1,h2/d?port=7", [("h1", 7), ("h2", 7)]),
        ("h1/d?port=7", [("h1", 7)]),
        ("h1:1,h2:2/d?host=h1:1&host=h2:2", [("h1", 1), ("h2", 2)]),
        ("u@/d?host=[::1]:1,::2", [("::1", 1), ("::2", None)]),
        ("%2Frun%2Fdb:5433,h2/d", [("/run/db", 5433), ("h2", None)]),
        ("u@/d?host=/run/db,h2&port=1,2", [("/run/db", 1), ("h2", 2)]),
        ("u@h1, h2:2/d", [("h1", None), ("h2", 2)]),
    ],
)
def test_the_hosts_of_a_cluster_are_read_in_every_spelling(
    scheme: str, rest: str, hosts: list[tuple[str, int | None]]
) -> None:
    target = parse(f"{scheme}://{rest}")
    assert list(target.hosts) == hosts
    assert (target.unix_socket or target.host, target.port) == hosts[0]
    assert not {"host", "port"} & set(target.options)
    assert parse(render(target)) == target


def test_a_label_names_all_hosts_of_a_cluster() -> None:
    target = parse(f"{P}://u:{SECRET}@h1:1,[::1]:2,h3/shop")
    assert target.label == "h1:1,[::1]:2,h3/shop"
    assert target.server == "h1:1,[::1]:2,h3"


@pytest.mark.parametrize("scheme", [P, M, "postgresql+asyncpg", "mysql+aiomysql", "mariadb"])
@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("h1:,h2:2/d", "host 1 of the database URL has a ':' without a port"),
        ("h1:1,h2:/d", "host 2 of the database URL has a ':' without a port"),
        ("h1:/d", "the host has a ':' without a port"),
        ("h1,,h2/d", "host 2 of the database URL is empty"),
        ("h1,h2,/d", "host 3 of the database URL is empty"),
        (",h2/d", "host 1 of the database URL is empty"),
        ("u@/d?host=h1&host=", "host 2 of the database URL is empty"),
        ("u@/d?host=h1,h2,h3&port=1,2", "2 ports for 3 hosts"),
        ("h1/d?port=1,2", "2 ports for 1 host;"),
        ("h1:1,h2/d?port=7", "the ports are given twice"),
        ("u@/d?host=h1:1,h2&port=1,2", "the ports are given twice"),
        ("h1/d?host=h2", "the hosts are given twice"),
        ("h1:1,h2:1,H1:1/d", "hosts 1 and 3 of the database URL are the same"),
        ("h1,h1./d", "hosts 1 and 2 of the database URL are the same"),
        ("h1:99999,h2/d", "is not a number from 1"),
        ("h1,h 2/d", "host 2 of the database URL contains an invalid character"),
        ("h1;h2/d", "the host contains an invalid character"),
        ("h1%2Ch2/d", "the host contains an invalid character"),
        ("h1,[::x]/d", "host 2 of the database URL in [brackets] is not an IPv6"),
        ("h1,a:b:c/d", "host 2 of the database URL contains more than one ':'"),
        ("u@/d?host=h1&host=h2&a=1&a=2", "an option appears twice"),
    ],
)
def test_hosts_that_cannot_be_read_are_told_in_one_line(scheme: str, rest: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(f"{scheme}://app:{SECRET}@{rest.removeprefix('u@')}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_usual_port_counts_where_hosts_are_compared() -> None:
    for url in ("mysql://h1,h1:3306/d", "postgresql://h1:5432,h1/d"):
        with pytest.raises(ConfigurationError, match="are the same"):
            parse(url)
    assert len(parse("mysql://h1,h1:5432/d").hosts) == 2


@pytest.mark.parametrize(
    "url", ["mysql://h1,h2/d?unix_socket=/s", "postgresql://h1,h2/d?host=/s", "postgresql://h1,h2/d?hostaddr=10.0.0.1"]
)  # fmt: skip
def test_one_socket_or_address_beside_several_hosts_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be combined with several hosts"):
        parse(url)


#: A NUL is refused: libraries in C would read the URL up to it.
_CHARACTERS = st.characters(exclude_characters="\0")
texts = st.text(_CHARACTERS, min_size=1, max_size=20).filter(
    lambda text: not any("\ud800" <= c <= "\udfff" for c in text)
)
hosts = st.one_of(
    st.none(), st.sampled_from(["db", "db.example.com", "10.0.0.1", "::1", "2001:db8::7"])
)
servers = st.sampled_from(SERVERS)
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


places = st.tuples(
    st.sampled_from(["db", "db.example.com", "10.0.0.1", "::1", "2001:db8::7", "/run/db"]),
    st.one_of(st.none(), st.integers(1, 65535)),
)


@given(
    servers,
    st.lists(places, min_size=2, max_size=6, unique_by=lambda place: place[0]),
    texts,
    st.one_of(st.none(), texts),
    st.dictionaries(option_names, texts, max_size=3),
)
def test_a_cluster_that_is_written_is_read_back(
    scheme: str,
    cluster: list[tuple[str, int | None]],
    user: str,
    password: str | None,
    options: dict[str, str],
) -> None:
    target = at(parse(f"{scheme}://h/d"), cluster)
    target = replace(target, user=user, password=password, options=options)
    assert parse(render(target)) == target
    assert list(parse(render(target)).hosts) == cluster


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


@pytest.mark.parametrize("place", ["a%00b:c@h/d", "a:%00@h/d", "a:b@h/d%00", "a:b@h/d?e=%00"])
def test_a_nul_character_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match="contains a NUL character"):
        parse(f"mysql://{place}")


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


def test_a_host_of_a_framework_never_shows_a_part_of_the_password() -> None:
    with pytest.raises(ConfigurationError, match="the host contains an '@'") as caught:
        of_framework(["secret@db.example"], [], None)
    assert "secret" not in str(caught.value)
    assert of_framework(["/run/a@b"], [], None)
