"""The pytest plugin, in runs of pytest's own: servers with fresh databases, faults by name, and the
watch over connections.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from unbroken_drill import pytest_plugin

HEAD = "import asyncio, time\nimport pytest, unbroken\n"


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other plugin, whose loading takes longer than most of these runs; ``with_others`` has them
    all, as they are installed.

    And no sign of a CI machine, where pytest's summary says every failure a second time, whole.
    """
    for sign in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(sign, raising=False)
    if "with_others" not in request.fixturenames:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTEST_PLUGINS", "unbroken_drill.pytest_plugin")


@pytest.fixture
def with_others() -> None:
    pass


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    """In a process of its own: pytester's other way imports drivers anew each time, which those in
    C do not survive.
    """
    pytester.makepyfile(HEAD + textwrap.dedent(source))
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-W", "ignore", "-rA", "--strict-markers", *arguments, timeout=150
    )


def said(result: pytest.RunResult) -> str:
    return result.stdout.str()


# -- being there -----------------------------------------------------------------------------------


def test_loading_it_imports_nothing_and_it_can_be_left_out(
    pytester: pytest.Pytester, with_others: None
) -> None:
    source = """
    import sys

    def test_modules():
        print("loaded:", *sorted(name for name in sys.modules if name.startswith("unbroken")))

    def test_fixture(request):
        request.getfixturevalue("unbroken_pool")
    """
    pytester.makepyfile(source)
    found = pytester.runpytest_subprocess("-rA", "-k", "modules")
    found.assert_outcomes(passed=1)
    assert "loaded: unbroken_drill unbroken_drill.pytest_plugin\n" in said(found)
    without = pytester.runpytest_subprocess("-rA", "-p", "no:unbroken")
    without.assert_outcomes(passed=1, failed=1)
    assert "loaded: \n" in said(without) or "loaded:\n" in said(without)
    assert "fixture 'unbroken_pool' not found" in said(without)


def test_its_fixtures_markers_and_settings_are_listed(pytester: pytest.Pytester) -> None:
    fixtures = said(pytester.runpytest_inprocess("--fixtures"))
    for name in (
        "mariadb",
        "mysql",
        "postgres",
        "mongodb",
        "proxy",
        "pool",
        "fault",
        "no_connection_leaks",
    ):
        assert f"\nunbroken_{name} -- " in fixtures
    markers = said(pytester.runpytest_inprocess("--markers"))
    assert "@pytest.mark.unbroken_faults(*names" in markers
    assert "@pytest.mark.unbroken_no_connection_leaks" in markers
    assert "unbroken_missing_server" in said(pytester.runpytest_inprocess("--help"))


def test_the_pages_examples_pass_as_they_stand(pytester: pytest.Pytester) -> None:
    page = (
        (Path(__file__).parents[2] / "docs" / "testing.md")
        .read_text()
        .split("# The pytest plugin\n")[1]
    )
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ):
        pytester.makepyfile(**{f"test_example_{number}": block})
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-W", "ignore", "--strict-markers", timeout=120
    )
    result.assert_outcomes(passed=3 + 1 + 1 + 2)


# -- servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "setting"), [("postgres", "lock_timeout"), ("mariadb", "wait_timeout")]
)
def test_each_test_has_a_fresh_database_on_a_server_that_is_well(
    pytester: pytest.Pytester, kind: str, setting: str
) -> None:
    databases = (
        "schema_name FROM information_schema.schemata"
        if kind == "mariadb"
        else "datname FROM pg_database"
    )
    source = f"""
    seen = []

    def use(server):
        with unbroken.Pool(server.url()) as pool, pool.connection() as conn:
            conn.cursor().execute("CREATE TABLE thing (n INT)")  # fails where it is there
        seen.append((server.database, server.port))

    def test_leaves_a_table(unbroken_{kind}): use(unbroken_{kind})
    def test_stops_it(unbroken_{kind}): use(unbroken_{kind}); unbroken_{kind}.stop()
    def test_kills_it(unbroken_{kind}): use(unbroken_{kind}); unbroken_{kind}.kill()
    def test_freezes_it(unbroken_{kind}): use(unbroken_{kind}); unbroken_{kind}.freeze()
    def test_changes_a_setting(unbroken_{kind}):
        use(unbroken_{kind})
        unbroken_{kind}.set({setting}=77)

    def test_leaves_a_transaction_open(unbroken_{kind}, unbroken_pool):
        use(unbroken_{kind})
        global conn
        conn = unbroken_pool(unbroken_{kind}).acquire()
        conn.cursor().execute("SELECT * FROM thing")

    def test_finds_nothing_of_all_that(unbroken_{kind}):
        use(unbroken_{kind})
        assert "77" not in unbroken_{kind}.admin("SHOW {"VARIABLES LIKE '" + setting + "'" if kind == "mariadb" else setting}")[0]
        assert len(set(seen)) == 7
        assert len({{port for _, port in seen}}) == 1
        rows = unbroken_{kind}.admin("SELECT {databases}")
        assert [name for name, in rows if name.startswith("test_")] == [unbroken_{kind}.database]
    """  # noqa: E501
    run(pytester, source).assert_outcomes(passed=7)


def test_mysql_and_mongodb_are_there_too(pytester: pytest.Pytester) -> None:
    source = """
    import pymongo

    def test_mysql(unbroken_mysql, unbroken_pool):
        with unbroken_pool(unbroken_mysql, "pymysql", max_size=1).connection() as conn:
            with conn.cursor() as cursor:
                cursor.execute("CREATE TABLE thing (n INT)")
                cursor.execute("SELECT VERSION(), DATABASE()")
                version, database = cursor.fetchone()
        assert "MariaDB" not in version
        assert database == unbroken_mysql.database

    @pytest.mark.parametrize("again", range(2))
    def test_mongodb(unbroken_mongodb, again):
        with pymongo.MongoClient(unbroken_mongodb.url()) as client:
            things = client.get_default_database()["thing"]
            assert things.count_documents({}) == 0
            things.insert_one({"n": 1})
    """
    run(pytester, source).assert_outcomes(passed=3)


@pytest.mark.parametrize("setting", ["", "skip"])
def test_a_server_that_is_not_installed_fails_the_test_in_one_line_or_skips_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("UNBROKEN_POSTGRES_BIN", "/nowhere")
    if setting:
        pytester.makeini(f"[pytest]\nunbroken_missing_server = {setting}\n")
    result = run(pytester, "def test_it(unbroken_postgres): pass")
    result.assert_outcomes(**({"skipped": 1} if setting else {"errors": 1}))
    assert "UNBROKEN_POSTGRES_BIN=/nowhere: no program postgres in this folder" in said(result)
    assert "Traceback" not in said(result)


def test_names_without_our_prefix_are_left_to_others(pytester: pytest.Pytester) -> None:
    """Other plugins own them: pytest-mysql and pytest-postgresql have fixtures ``mysql`` and
    ``postgresql``, pytest-mongodb ``mongodb``.
    """
    tree = ast.parse(Path(pytest_plugin.__file__).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [
        f.name
        for f in functions
        if any("fixture" in ast.unparse(each) for each in f.decorator_list)
    ]
    assert len(names) >= 9
    assert [name for name in names if not name.startswith("unbroken_")] == []
    markers = re.findall(
        r"^@pytest.mark.(\w+)",
        said(pytester.runpytest_inprocess("--markers", "-p", "no:timeout")),
        re.MULTILINE,
    )
    assert {name for name in markers if "fault" in name or "leak" in name} == {
        "unbroken_faults",
        "unbroken_no_connection_leaks",
    }


def test_a_fixture_of_the_projects_own_may_stand_for_ours(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef db(unbroken_postgres): return unbroken_postgres\n"
    )
    source = """
    @pytest.mark.unbroken_faults("kill")
    def test_it(db, unbroken_fault, unbroken_pool):
        pool = unbroken_pool(db, "psycopg")
        for _ in range(2):
            assert pool.run(lambda conn: conn.execute("SELECT 1").fetchone()[0]) == 1
            unbroken_fault()
    """
    run(pytester, source).assert_outcomes(passed=1)


# -- faults ----------------------------------------------------------------------------------------

ALL = (
    '"kill", "restart", "crash", "freeze", "fin", "rst", "half_close", "blackhole", "refuse",'
    ' "hang_connect", "latency", "silent_drop"'
)


@pytest.mark.parametrize(("kind", "driver"), [("postgres", "psycopg"), ("mariadb", "pymysql")])
def test_a_test_runs_once_per_fault_and_plays_it_when_it_likes(
    pytester: pytest.Pytester, kind: str, driver: str
) -> None:
    source = f"""
    def ask(conn):
        with conn.cursor() as cursor:
            cursor.execute("SELECT 42")
            return cursor.fetchone()[0]

    @pytest.mark.unbroken_faults({ALL}, seconds=0.1)
    def test_nobody_notices(unbroken_{kind}, unbroken_fault, unbroken_pool, request):
        assert unbroken_fault.name == request.node.callspec.id
        pool = unbroken_pool(unbroken_fault, "{driver}", max_size=1, ping_after=0.05, ping_timeout=0.5, connect_timeout=1.0)
        assert pool.run(ask) == 42
        unbroken_fault()
        assert unbroken_fault.played == 1
        time.sleep(0.06)  # ping_after
        assert pool.run(ask) == 42

    @pytest.mark.unbroken_faults("lost_commit", "unsent_commit")
    def test_a_commit_in_doubt(unbroken_{kind}, unbroken_fault, unbroken_pool):
        pool = unbroken_pool(unbroken_fault, "{driver}")
        with pool.connection() as conn:
            conn.cursor().execute("CREATE TABLE thing (n INT)")
        unbroken_fault()
        with pytest.raises(unbroken.CommitUnknownError), pool.connection() as conn:
            conn.cursor().execute("INSERT INTO thing VALUES (1)")
        deadline = time.monotonic() + 10
        while (rows := unbroken_{kind}.admin("SELECT COUNT(*) FROM thing")[0][0]) != "01"[unbroken_fault.name == "lost_commit"]:
            assert time.monotonic() < deadline, rows

    @pytest.mark.unbroken_faults("restart", "refuse")
    def test_it_lasts_as_long_as_its_block(unbroken_{kind}, unbroken_fault, unbroken_pool):
        pool = unbroken_pool(unbroken_fault, "{driver}")
        assert pool.run(ask) == 42
        with unbroken_fault:
            with pytest.raises(unbroken.OutageError):
                pool.acquire(timeout=0.2)
        assert pool.run(ask) == 42
    """  # noqa: E501
    result = run(pytester, source)
    result.assert_outcomes(passed=16)
    assert "test_nobody_notices[half_close]" in said(result)


def test_a_fault_comes_beside_a_test_that_does_not_play_it(pytester: pytest.Pytester) -> None:
    source = """
    def ask(conn):
        return conn.execute("SELECT pg_backend_pid()").fetchone()[0]

    @pytest.mark.unbroken_faults("crash", "restart", after=0.0, every=0.1, seconds=0.1)
    def test_it_comes(unbroken_postgres, unbroken_pool):
        pool = unbroken_pool(unbroken_postgres, "psycopg")
        seen, deadline = set(), time.monotonic() + 20
        while len(seen) < 2:
            seen.add(pool.run(ask))
            assert time.monotonic() < deadline

    @pytest.mark.unbroken_faults("kill", after=0.0, every=0.01)
    def test_it_comes_again_and_again(unbroken_postgres, unbroken_pool):
        pool = unbroken_pool(unbroken_postgres, "psycopg")
        seen, deadline = set(), time.monotonic() + 20
        while len(seen) < 4:
            seen.add(pool.run(ask))
            assert time.monotonic() < deadline

    @pytest.mark.unbroken_faults("kill", after=60)
    def test_it_is_over_before(unbroken_postgres):
        pass

    @pytest.mark.unbroken_faults("kill", after=0.0)
    def test_it_cannot_be_played(unbroken_mongodb):
        time.sleep(0.2)

    @pytest.mark.unbroken_faults("kill", after=60)
    def test_its_own_failure_is_the_one_that_counts(unbroken_postgres):
        assert "mine" == "yours"
    """
    result = run(pytester, source)
    result.assert_outcomes(passed=3, failed=3)
    assert "the test ended before its fault 'kill', which comes after 60 s" in said(result)
    assert "the fault 'kill' could not be played: MongoDB cannot end a client's session" in said(
        result
    )
    assert "'mine' == 'yours'" in said(result)


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        (
            '@pytest.mark.unbroken_faults("kil")\ndef test_it(unbroken_postgres): pass',
            "unknown fault 'kil'; faults: kill, restart,",
        ),
        (
            "@pytest.mark.unbroken_faults\ndef test_it(unbroken_postgres): pass",
            "no fault is named; faults: kill, restart,",
        ),
        (
            '@pytest.mark.unbroken_faults("kill", second=1)\ndef test_it(unbroken_postgres): pass',
            "unknown option 'second'",
        ),
    ],
)
def test_what_cannot_be_meant_is_answered_in_one_line(
    pytester: pytest.Pytester, source: str, answer: str
) -> None:
    pytester.makepyfile("import pytest\n" + source)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret != 0
    assert answer in said(result) + result.stderr.str()
    assert "Traceback" not in said(result)
    assert "INTERNALERROR" not in said(result)


def test_a_fault_needs_a_server_and_a_marker(pytester: pytest.Pytester) -> None:
    source = """
    @pytest.mark.unbroken_faults("kill")
    def test_none(): pass

    @pytest.mark.unbroken_faults("kill", server="oracle")
    def test_unknown(): pass

    def test_unmarked(unbroken_fault): pass
    """
    result = run(pytester, source)
    result.assert_outcomes(errors=3)
    assert "the test uses none; write unbroken_faults(…, server=…) with one of mariadb," in said(
        result
    )
    assert "the test says server='oracle'" in said(result)
    assert "the fixture unbroken_fault needs a marker: @pytest.mark.unbroken_faults(" in said(
        result
    )
    assert "Traceback" not in said(result)


# -- leaks -----------------------------------------------------------------------------------------


def test_a_test_that_leaves_a_connection_checked_out_fails_and_the_place_is_named(
    pytester: pytest.Pytester,
) -> None:
    source = """
    import threading
    from sqlalchemy import create_engine

    pytestmark = pytest.mark.unbroken_no_connection_leaks
    kept = []

    def take(pool):
        kept.append(pool.acquire())

    @pytest.fixture(scope="module")
    def url(unbroken_servers):
        return unbroken_servers.get("postgres").url("psycopg")

    @pytest.fixture(scope="module")
    def pool(url):
        with unbroken.Pool(url, max_size=20) as pool:
            yield pool

    @pytest.fixture
    def held(pool):
        conn = pool.acquire()
        yield conn
        pool.release(conn)

    def test_keeps_one(pool): take(pool)
    def test_forgets_one(pool): pool.acquire()
    def test_drops_its_own_pool(url): unbroken.Pool(url).acquire()
    def test_of_sqlalchemy(url):
        engine = create_engine(url, plugins=["unbroken"])
        kept.append(engine.connect())

    def test_gives_back(pool, held):  # the fixture's is the fixture's
        with pool.connection():
            pass

    def test_gives_back_a_little_later(pool):
        conn = pool.acquire()
        threading.Timer(0.05, pool.release, (conn,)).start()

    def test_fails_by_itself(pool):
        take(pool)
        assert "mine" == "yours"
    """
    result = run(pytester, source)
    result.assert_outcomes(passed=2, failed=5)
    lines = said(result).splitlines()
    leaks = [line for line in lines if line.startswith("  a connection of pool")]
    assert any("still checked out" in line and line.rstrip().endswith("in take") for line in leaks)
    assert any(
        "was garbage-collected" in line and line.rstrip().endswith("in test_forgets_one")
        for line in leaks
    )
    assert any(
        "was garbage-collected" in line and line.rstrip().endswith("in test_drops_its_own_pool")
        for line in leaks
    )
    assert any(
        "still checked out" in line and line.rstrip().endswith("in test_of_sqlalchemy")
        for line in leaks
    )
    assert "'mine' == 'yours'" in said(result)
    assert f"{pytester.path}" in leaks[0]


COROUTINES = """
    pytestmark = [{mark}, pytest.mark.unbroken_no_connection_leaks]
    kept = []

    @pytest.fixture
    def anyio_backend(): return "asyncio"

    async def test_keeps_one(unbroken_postgres):
        pool = unbroken.AsyncPool(unbroken_postgres.url("asyncpg"))
        kept.append(await pool.acquire())

    async def test_forgets_one(unbroken_postgres):
        await unbroken.AsyncPool(unbroken_postgres.url("asyncpg")).acquire()

    async def test_gives_back(unbroken_postgres):
        async with unbroken.AsyncPool(unbroken_postgres.url("asyncpg")) as pool, pool.connection() as conn:
            assert await conn.fetchval("SELECT 1") == 1

    @pytest.mark.unbroken_faults("kill", "rst")
    async def test_nobody_notices(unbroken_postgres, unbroken_fault):
        async with unbroken.AsyncPool(unbroken_fault.url("asyncpg"), max_size=1) as pool:
            for _ in range(2):
                assert await pool.run(lambda conn: conn.fetchval("SELECT 1")) == 1
                await asyncio.to_thread(unbroken_fault)

    @pytest.mark.unbroken_faults("kill", after=0.0, every=0.02)
    async def test_beside(unbroken_postgres):
        async with unbroken.AsyncPool(unbroken_postgres.url("asyncpg"), max_size=1) as pool:
            seen = set()
            async with asyncio.timeout(20):
                while len(seen) < 2:
                    seen.add(await pool.run(lambda conn: conn.fetchval("SELECT pg_backend_pid()")))
                    await asyncio.sleep(0.01)
"""  # noqa: E501


def test_it_works_for_coroutines_of_pytest_asyncio_and_anyio(
    pytester: pytest.Pytester, with_others: None
) -> None:
    modules = {"test_asyncio": "pytest.mark.asyncio", "test_anyio": "pytest.mark.anyio"}
    pytester.makepyfile(
        **{
            name: HEAD + textwrap.dedent(COROUTINES.format(mark=mark))
            for name, mark in modules.items()
        }
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=8, failed=4)
    leaks = [
        line.rstrip()
        for line in said(result).splitlines()
        if line.startswith("  a connection of pool")
    ]
    for name in modules:
        assert any(f"{name}.py" in line and line.endswith("in test_keeps_one") for line in leaks)
        assert any(f"{name}.py" in line and line.endswith("in test_forgets_one") for line in leaks)


def test_a_setting_watches_every_test_also_those_of_asyncio_by_itself(
    pytester: pytest.Pytester, with_others: None
) -> None:
    pytester.makeini("[pytest]\nasyncio_mode = auto\nunbroken_no_connection_leaks = true\n")
    source = """
    async def test_keeps_one(unbroken_postgres):
        global conn
        conn = await unbroken.AsyncPool(unbroken_postgres.url("asyncpg")).acquire()

    def test_keeps_another(unbroken_postgres, unbroken_pool):
        global other
        other = unbroken_pool(unbroken_postgres, "psycopg").acquire()
    """
    result = run(pytester, source)
    result.assert_outcomes(failed=2)
    assert said(result).count("is still checked out") == 2


def test_each_worker_of_xdist_has_servers_of_its_own(
    pytester: pytest.Pytester, with_others: None
) -> None:
    source = """
    import os

    @pytest.mark.unbroken_no_connection_leaks
    @pytest.mark.parametrize("number", range(4))
    @pytest.mark.unbroken_faults("kill", "restart")
    def test_it(unbroken_postgres, unbroken_fault, unbroken_pool, number):
        pool = unbroken_pool(unbroken_postgres, "psycopg")
        for _ in range(2):
            assert pool.run(lambda conn: conn.execute("SELECT current_database()").fetchone()[0]) == unbroken_postgres.database
            unbroken_fault()
        print("server", os.environ["PYTEST_XDIST_WORKER"], unbroken_postgres.port)
    """  # noqa: E501
    result = run(pytester, source, "-n", "2")
    result.assert_outcomes(passed=8)
    servers = {line for line in said(result).splitlines() if line.startswith("server gw")}
    assert {line.split()[1] for line in servers} == {"gw0", "gw1"}
    assert len({line.split()[2] for line in servers}) == 2
