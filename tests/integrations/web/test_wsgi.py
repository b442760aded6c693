"""The WSGI middleware around small apps that use a pool on a real server."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest

import unbroken
import unbroken.wsgi
from unbroken_drill.servers import MariaDB, PostgreSQL

#: PyMySQL says the one or the other, depending on whether the FIN has come before it sends.
LOST = "Lost connection|gone away"


class Client:
    """Asks a WSGI app as a server does, and keeps what it sent."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.status, self.headers, self.sent = "", {}, []

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"", **environ: Any) -> bytes:
        made: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, **environ}
        if body:
            made |= {
                "wsgi.input": io.BytesIO(body + b"of the next request"),
                "CONTENT_LENGTH": str(len(body)),
            }
        setup_testing_defaults(made)
        self.sent: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.status = ""
        result = self.app(made, self.start_response)
        try:
            for chunk in result:
                assert self.status
                self.sent.append(chunk)
        finally:
            getattr(result, "close", lambda: None)()
        return b"".join(self.sent)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info and self.sent:
            raise exc_info[1]
        self.status, self.headers = status, {name.lower(): value for name, value in headers}
        return self.sent.append


@pytest.fixture
def pool(mariadb: MariaDB) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(mariadb.url("pymysql")) as made:
        yield made


@pytest.fixture
def table(mariadb: MariaDB) -> Iterator[str]:
    mariadb.admin("CREATE TABLE web_item (number INT)")
    yield "web_item"
    mariadb.kill_sessions()
    mariadb.admin("DROP TABLE web_item")


class Breaking:
    """An app that reads from the database, and loses its connection the first *times*."""

    def __init__(
        self, pool: unbroken.Pool, server: Any, times: int = 1, sql: str = "SELECT 1"
    ) -> None:
        self.pool, self.server, self.times, self.sql = pool, server, times, sql
        self.calls = 0
        self.environs: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.read = -1

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.calls += 1
        self.environs.append(dict(environ))
        environ["seen"] = True
        self.bodies.append(
            environ["wsgi.input"].read(self.read) if environ.get("CONTENT_LENGTH") else b""
        )
        with self.pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute(self.sql)
            if self.calls <= self.times:
                self.server.kill_sessions()
            cursor.execute(self.sql)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"call %d" % self.calls]


def test_a_get_whose_connection_is_lost_is_run_again_with_the_environ_it_came_with(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    app = Breaking(pool, mariadb, times=2)
    client = Client(unbroken.wsgi.Unbroken(app))
    assert client.ask() == b"call 3"
    assert client.status == "200 OK"
    assert all("seen" not in environ for environ in app.environs)


def test_a_page_that_the_app_made_of_the_error_is_not_sent_but_the_request_run_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    inner = Breaking(pool, mariadb)

    def app(environ: Any, start_response: Any) -> Any:
        try:
            return inner(environ, start_response)
        except Exception:
            start_response("500 Internal Server Error", [])
            return [b"sorry"]

    client = Client(unbroken.wsgi.Unbroken(app))
    assert client.ask() == b"call 2"
    inner.calls, inner.times = 0, 100
    assert Client(unbroken.wsgi.Unbroken(app, max_replays=1)).ask() == b"sorry"
    assert inner.calls == 2


def test_an_error_that_another_attempt_would_not_cure_is_the_servers(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    app = Breaking(pool, mariadb, times=0, sql="SELECT nothing FROM nowhere")
    with pytest.raises(Exception, match="nowhere"):
        Client(unbroken.wsgi.Unbroken(app)).ask()
    assert app.calls == 1


def test_a_post_is_run_again_only_where_the_settings_say_so(
    pool: unbroken.Pool, mariadb: MariaDB, table: str
) -> None:
    def attempt(path: str, **settings: Any) -> tuple[int, int]:
        mariadb.admin(f"DELETE FROM {table}")
        app = Breaking(pool, mariadb, sql=f"INSERT INTO {table} VALUES (1)")
        with contextlib.suppress(Exception):
            Client(unbroken.wsgi.Unbroken(app, **settings)).ask("POST", path)
        return app.calls, int(mariadb.admin(f"SELECT COUNT(*) FROM {table}")[0][0])

    assert attempt("/orders") == (1, 0)
    assert attempt("/orders", replay="/orders") == (2, 2)
    assert attempt("/orders/7", replay=["/orders"]) == (2, 2)
    assert attempt("/orders-old", replay=["/orders"]) == (1, 0)
    assert attempt("/orders", replay=lambda environ: environ["PATH_INFO"] == "/orders" or None) == (
        2,
        2,
    )
    assert attempt("/orders", methods=["POST"]) == (2, 2)


def test_a_get_may_be_told_not_to_be_run_again(pool: unbroken.Pool, mariadb: MariaDB) -> None:
    app = Breaking(pool, mariadb)
    with contextlib.suppress(Exception):
        Client(unbroken.wsgi.Unbroken(app, replay=lambda _environ: False)).ask()
    assert app.calls == 1


@pytest.mark.parametrize("read", [-1, 3, 5])
def test_the_body_is_there_again_whole_in_each_attempt(
    read: int, pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    app = Breaking(pool, mariadb)
    app.read = read
    Client(unbroken.wsgi.Unbroken(app, methods="POST")).ask("POST", body=b"hello")
    whole = b"hello"[: read if read > 0 else None]
    assert app.bodies == [whole, whole]


READERS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda source: source.read(),
    "read in parts": lambda source: b"".join(iter(lambda: source.read(1000), b"")),
    "read1": lambda source: b"".join(iter(lambda: source.read1(1000), b"")),
    "readline": lambda source: b"".join(iter(source.readline, b"")),
    "readlines": lambda source: b"".join(source.readlines()),
    "iteration": b"".join,
    "readinto": lambda source: bytes((buffer := bytearray(50_000))[: source.readinto(buffer)]),
    "a wrapper": lambda source: io.TextIOWrapper(source).read().encode(),
}


@pytest.mark.parametrize("how", list(READERS))
@pytest.mark.parametrize("kept", [True, False])
def test_the_body_is_whole_however_it_is_read(
    how: str, kept: bool, pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    """Also one that is too long to be kept: that request is not run again."""
    body = b"".join(b"line %d\n" % number for number in range(3000))
    seen: list[bytes] = []
    inner = Breaking(pool, mariadb, times=2 if kept else 0)

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(READERS[how](environ["wsgi.input"]))
        return inner({**environ, "CONTENT_LENGTH": ""}, start_response)

    client = Client(
        unbroken.wsgi.Unbroken(app, methods="POST", max_body=50_000 if kept else 10_000)
    )
    client.ask("POST", body=body)
    assert client.status == "200 OK"
    assert seen == [body] * (3 if kept else 1)


def test_a_request_with_a_longer_body_than_is_kept_is_not_run_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    app = Breaking(pool, mariadb)
    client = Client(unbroken.wsgi.Unbroken(app, methods="POST", max_body=4))
    client.ask("POST", body=b"hello")
    assert client.status.startswith("503")
    assert app.bodies == [b"hello"]


def test_inside_a_post_a_units_of_its_own_is_run_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    calls = []

    def work(conn: Any) -> None:
        calls.append(1)
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1")
            if len(calls) == 1:
                mariadb.kill_sessions()
            cursor.execute("SELECT 1")

    def app(_environ: Any, start_response: Any) -> Any:
        pool.run(work)
        start_response("200 OK", [])
        return [b"done"]

    assert Client(unbroken.wsgi.Unbroken(app)).ask("POST") == b"done"
    assert len(calls) == 2


def streaming(pool: unbroken.Pool, server: Any, steps: list[str]) -> Callable[..., Any]:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        with pool.connection() as conn, conn.cursor() as cursor:
            for number in range(3):
                steps.append(f"made {number}")
                if number == 2:
                    server.kill_sessions()
                cursor.execute("SELECT 1")
                yield b"%d" % number

    return app


def test_a_stream_goes_out_as_it_is_made_and_is_not_begun_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    steps: list[str] = []
    client = Client(unbroken.wsgi.Unbroken(streaming(pool, mariadb, steps)))
    made: dict[str, Any] = {}
    setup_testing_defaults(made)
    result = client.app(made, client.start_response)
    assert (client.status, steps) == ("200 OK", ["made 0"])
    chunks = iter(result)
    assert next(chunks) == b"0"
    assert steps == ["made 0"]
    assert next(chunks) == b"1"
    with pytest.raises(Exception, match=LOST):
        next(chunks)
    result.close()
    assert steps == ["made 0", "made 1", "made 2"]


def test_a_stream_that_fails_before_its_first_chunk_is_run_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    inner = Breaking(pool, mariadb)
    closed = []

    class Body:
        def __init__(self, environ: Any, start_response: Any) -> None:
            self._made = (environ, start_response)

        def __iter__(self) -> Iterator[bytes]:
            yield b""
            yield from inner(*self._made)

        def close(self) -> None:
            closed.append(1)

    client = Client(unbroken.wsgi.Unbroken(Body))
    assert client.ask() == b"call 2"
    assert len(closed) == 2


def test_what_was_written_the_old_way_is_out_and_the_request_not_run_again(
    pool: unbroken.Pool, mariadb: MariaDB
) -> None:
    inner = Breaking(pool, mariadb)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])(b"head ")
        return inner(environ, lambda *_: None)

    client = Client(unbroken.wsgi.Unbroken(app))
    with pytest.raises(Exception, match=LOST):
        client.ask()
    assert (client.sent, inner.calls) == ([b"head "], 1)


def test_lists_and_files_are_handed_to_the_server_as_they_are() -> None:
    listed, filed = [b"x"], FileWrapper(io.BytesIO(b"x"))

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return listed if environ["PATH_INFO"] == "/list" else filed

    for path, body in (("/list", listed), ("/file", filed)):
        environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.file_wrapper": FileWrapper}
        setup_testing_defaults(environ)
        assert unbroken.wsgi.Unbroken(app)(environ, lambda *_: None) is body  # type: ignore[comparison-overlap]


@pytest.fixture
def away(new_mariadb: Callable[..., MariaDB]) -> Iterator[unbroken.Pool]:
    """A pool whose server is away."""
    server = new_mariadb()
    with unbroken.Pool(server.url("pymysql"), outage_wait=0.2) as pool:
        server.stop()
        yield pool


def test_an_outage_is_answered_with_503_as_json_or_html_and_without_a_hosts_name(
    away: unbroken.Pool,
) -> None:
    app = Breaking(away, None)
    client = Client(unbroken.wsgi.Unbroken(app))
    for method in ("GET", "POST"):
        body = client.ask(method, HTTP_ACCEPT="*/*")
        assert (client.status, client.headers["retry-after"]) == ("503 Service Unavailable", "1")
        assert client.headers["content-type"] == "application/json"
        assert b"127.0.0.1" not in body
    body = client.ask(HTTP_ACCEPT="text/html,application/xhtml+xml,*/*;q=0.8")
    assert client.headers["content-type"] == "text/html; charset=utf-8"
    assert body.startswith(b"<!doctype html>")
    client.ask(HTTP_ACCEPT="application/json, text/html;q=0.5")
    assert client.headers["content-type"] == "application/json"
    assert client.ask("HEAD") == b""
    assert int(client.headers["content-length"]) > 0


def test_an_outage_that_the_app_made_a_500_of_is_a_503_and_other_pages_of_its_are_its_own(
    away: unbroken.Pool,
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            return Breaking(away, None)(environ, start_response)
        except Exception:
            start_response(f"{environ['PATH_INFO'][1:]} As Said", [])
            return [b"sorry"]

    client = Client(unbroken.wsgi.Unbroken(app))
    for method in ("GET", "POST"):
        client.ask(method, "/500")
        assert client.status == "503 Service Unavailable"
        for status in ("200", "404", "502"):
            assert client.ask(method, f"/{status}") == b"sorry"
            assert client.status == f"{status} As Said"


def test_a_commit_without_an_answer_is_said_to_be_unknown_and_not_run_again(
    postgres: PostgreSQL,
) -> None:
    import threading
    import time

    postgres.admin("CREATE TABLE slow (number INT); GRANT ALL ON slow TO PUBLIC")
    postgres.admin(
        "CREATE FUNCTION nap() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'"
        " LANGUAGE plpgsql"
    )
    postgres.admin(
        "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH"
        " ROW EXECUTE FUNCTION nap()"
    )
    calls = []

    def kill() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if postgres.admin(
                "SELECT 1 FROM pg_stat_activity WHERE query ILIKE 'commit%' AND state = 'active'"
            ):
                postgres.kill_sessions()
                return
            time.sleep(0.01)

    with unbroken.Pool(postgres.url("psycopg")) as pool:

        def app(_environ: Any, start_response: Any) -> Any:
            calls.append(1)
            with pool.connection() as conn:
                conn.execute("INSERT INTO slow VALUES (1)")
            start_response("200 OK", [])
            return [b"stored"]

        client = Client(unbroken.wsgi.Unbroken(app, methods=["POST"]))
        killer = threading.Thread(target=kill)
        killer.start()
        body = client.ask("POST")
        killer.join()
    postgres.admin("DROP TABLE slow; DROP FUNCTION nap")
    assert client.status == "500 Internal Server Error"
    assert b"outcome unknown" in body
    assert "retry-after" not in client.headers
    assert len(calls) == 1


def test_a_deadline_bounds_all_attempts_and_is_answered_with_503(pool: unbroken.Pool) -> None:
    app = Breaking(pool, None, times=0, sql="SELECT SLEEP(30)")
    client = Client(unbroken.wsgi.Unbroken(app, deadline=0.3))
    assert b"did not answer in time" in client.ask()
    assert (client.status, app.calls) == ("503 Service Unavailable", 1)


def test_what_a_request_took_from_a_named_pool_is_taken_back(
    pool: unbroken.Pool, mariadb: MariaDB, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    def app(_environ: Any, start_response: Any) -> Any:
        kept.append(pool.acquire())
        start_response("200 OK", [])
        return [b"forgot"]

    client = Client(unbroken.wsgi.Unbroken(app, databases=pool))
    for _ in range(30):
        assert client.ask() == b"forgot"
        client.ask("POST")
    assert pool.stats().used == 0
    said = [r.getMessage() for r in caplog.records if "without releasing" in r.getMessage()]
    assert len(said) == 1
    assert f"{__file__}:" in said[0]
    assert len(mariadb.sessions()) <= pool.settings.max_size


def test_health_says_that_the_process_lives_and_readiness_that_the_database_answers(
    new_mariadb: Callable[..., MariaDB],
) -> None:
    server = new_mariadb()
    with unbroken.Pool(server.url("pymysql")) as pool:
        client = Client(
            unbroken.wsgi.Unbroken(
                lambda *_: [], databases=pool, healthz="/live", readyz="/ready", ready_timeout=2
            )
        )
        assert client.ask(path="/ready") == b'{"status": "ok", "shop": "ok"}\n'
        server.stop()
        assert client.ask(path="/ready") == b'{"status": "away", "shop": "away"}\n'
        assert client.status.startswith("503")
        client.ask(path="/live")
        assert client.status == "200 OK"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": ["GET"]}, "did you mean 'methods'?"),
        ({"max_body": -1}, "max_body=-1 must be a whole number of at least 0"),
        ({"deadline": 0}, "deadline=0 must be a number of seconds above 0, or None"),
        ({"healthz": "live"}, "healthz='live' must be a path that begins with a slash"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(unbroken.ConfigurationError, match=words.replace("?", r"\?")):
        unbroken.wsgi.Unbroken(lambda *_: [], **settings)
