"""Options, wherever they come from: what they mean together, and what is refused before anything is
started.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import command, options, project
from unbroken_drill.drill.apps.actor import OwnApp
from unbroken_drill.drill.apps.plan import Variant, database_variable, fill
from unbroken_drill.drill.command import drill
from unbroken_drill.drill.where import Where

GOOD: dict[str, Any] = {
    "url": ["http://127.0.0.1:{port}/items"],
    "env": ["DATABASE_URL"],
    "arguments": ("python3", "app.py"),
    "seed": 1,
}
HERE = Where.of("mysql://app:p%40ss@127.0.0.1:4711/shop")


def variants(order: options.Order) -> list[Variant]:
    return [each.variant for each in order.drill.contenders if isinstance(each, OwnApp)]


def test_the_least_that_is_needed_gives_a_plan_with_the_usual_values() -> None:
    order = options.order(GOOD)
    assert order.left_out == []
    assert [variant.argv for variant in variants(order)] == [("python3", "app.py")]
    plan, play = order.app, order.drill
    assert plan is not None
    assert (plan.backend, plan.rate, plan.timeout) == ("postgresql", 50.0, 10.0)
    assert (play.lanes, play.repeat, order.judge.max_errors) == (1, 1, 0)
    assert len(play.scenarios) == 10


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"url": None}, "the drill of an app needs --url"),
        ({"env": ()}, "the drill of an app needs --env NAME"),
        ({"arguments": ()}, "the drill of an app needs the app's command"),
        ({"arguments": ("no-such-program",)}, "no-such-program: no such program"),
        ({"arguments": ("X=1",)}, "is empty"),
        ({"compare": True, "arguments": ("python3 x",)}, "needs two commands"),
        (
            {"compare": True, "arguments": ("a: python3 x", "a: python3 y")},
            "two apps have the name 'a'",
        ),
        ({"compare": True, "arguments": ("python3 'x", "python3")}, "No closing quotation"),
        ({"url": ["ftp://127.0.0.1/"]}, "is not an http:// URL"),
        ({"url": ["http://127.0.0.1:99999/"]}, "is not an http:// URL"),
        ({"url": ["http:///items"]}, "is not an http:// URL"),
        ({"url": ["ge$t http://127.0.0.1/"]}, "is not an HTTP method"),
        ({"env": ["1X"]}, "is not the name of an environment variable"),
        ({"env": ["X={hots}"]}, "unknown part {hots}; known: {url}"),
        ({"header": ["Accept"]}, "must have the form 'Name: value'"),
        ({"header": ["A: b\nC: d"]}, "must have the form 'Name: value'"),
        (
            {"servers": "postgres"},
            "unknown server 'postgres' for an app (did you mean 'postgresql'?)",
        ),
        ({"servers": "mariadb,mysql"}, "unknown server 'mariadb,mysql'"),
        ({"db": "mysql://u:secret@db/shop"}, "add --harm"),
        ({"db": "redis://db/0", "harm": True}, "--db is not a database URL"),
        ({"harm": True}, "remove it, or add --db"),
        ({"scenarios": ["restrat"]}, "did you mean 'restart'"),
        (
            {"db": "mysql://u:secret@db/shop", "harm": True, "scenarios": ["restart"]},
            "restart is skipped: it needs a private server",
        ),
        ({"servers": "mongodb", "scenarios": ["kill"]}, "mongodb cannot kill sessions"),
        ({"rate": 0.0}, "rate is 0, but must be more than 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"timeout": -1.0}, "timeout is -1"),
        ({"jobs": 2, "url": ["http://127.0.0.1:1/"]}, "write {port}"),
        ({"judge": ["B"]}, "no app has that name"),
        ({"setup_sql": "@/no/such/file"}, "--setup-sql @/no/such/file"),
        ({"setup_sql": "x", "servers": "mongodb"}, "use --setup COMMAND"),
        ({"folder": "/no/such"}, "no such folder"),
    ],
)
def test_what_cannot_work_is_said_at_once_in_one_line_without_a_password(
    given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        options.order({**GOOD, **given})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"another program already listens on 127.0.0.1:{port}"
        ):
            options.order({**GOOD, "url": [f"http://127.0.0.1:{port}/"]})


def test_variants_may_have_names_and_variables_of_their_own() -> None:
    arguments = ("plain: MODE='a b' python3 -c 'x y'", "python3 z")
    first, second = variants(options.order({**GOOD, "compare": True, "arguments": arguments}))
    assert (first.name, first.argv, first.environment) == (
        "plain",
        ("python3", "-c", "x y"),
        {"MODE": "a b"},
    )
    assert (second.name, second.argv) == ("B python3", ("python3", "z"))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("DATABASE_URL", "DATABASE_URL", "mysql://app:p%40ss@127.0.0.1:4711/shop"),
        ("DB_HOST={host}", "DB_HOST", "127.0.0.1"),
        ("DB_PORT={port}", "DB_PORT", "4711"),
        ("DB_PASSWORD={password}", "DB_PASSWORD", "p@ss"),
        (
            "U=mysql+aiomysql://{user}:{password}@{host}:{port}/{database}",
            "U",
            "mysql+aiomysql://app:p%40ss@127.0.0.1:4711/shop",
        ),
        ("ODD={user}}{", "ODD", "app}{"),
    ],
)
def test_the_app_is_told_where_its_database_is_in_the_form_it_wants(
    text: str, name: str, value: str
) -> None:
    variable, template = database_variable(text)
    assert (variable, fill(template, HERE)) == (name, value)


def test_a_template_says_which_server_is_wanted() -> None:
    plan = options.order({**GOOD, "env": ["U=mysql://{user}@{host}"]}).app
    assert plan is not None
    assert plan.backend == "mariadb"


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "drill.toml"
    file.write_text(
        'rate = 20\ntimeout = 4\nurl = "http://127.0.0.1:{port}/"\n[[scenario]]\nname = "x"\nsteps'
        ' = ["run 1"]\n'
    )
    merged, found = project.merged(
        {"config": str(file), "rate": 30.0, "timeout": None, "env": ("A",), "scenarios": "x"}
    )
    assert found == file
    order = options.order({**merged, "arguments": ("python3",)})
    assert order.app is not None
    assert (order.app.rate, order.app.timeout) == (30.0, 4.0)
    assert [each.name for each in order.drill.scenarios] == ["x"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rate = ", "Invalid value"),
        ("rtae = 5", "unknown key 'rtae' (did you mean 'rate'?)"),
        ('rate = "5"', "rate = '5' must be a number"),
        ("rate = true", "must be a number"),
        ("seed = 1.5", "must be a whole number"),
        ("url = [1]", "must be a text or a list of texts"),
        ("harm = 1", "must be true or false"),
        ("compare = 1", "compare must be a table of names and commands"),
        ("scenario = 1", "scenario must be a list of tables"),
        ("[[scenario]]\nsteps = ['run 1']", "scenario 'no. 1': name is missing"),
        ("[[scenario]]\nname = 'x'", "scenario 'x': steps is missing"),
        (
            "[[scenario]]\nname = 'x'\nsteps = ['run 1']\nstep = 1",
            "scenario 'x': unknown key 'step' (did you mean 'steps'?)",
        ),
        (
            "[[scenario]]\nname = 'x'\nsteps = ['rnu 1']",
            "scenario 'x': step 'rnu 1': unknown step 'rnu' (did you mean 'run'?)",
        ),
        (
            "[[scenario]]\nname = 'x'\nsteps = ['run 1']\nserver_idle_limit = 0",
            "server_idle_limit is 0, but must be a whole number of at least 1",
        ),
        (
            "[[scenario]]\nname='x'\nsteps=['run 1']\n[[scenario]]\nname='x'\nsteps=['run 1']",
            "two scenarios have the name 'x'",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(
    text: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "drill.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        project.read(file)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_every_option_of_the_command_line_may_stand_in_the_file() -> None:
    mine = {parameter.name for parameter in drill.params}
    only_there = {
        "config",
        "arguments",
        "verbose",
        "compare",
        "all",
        "contenders",
        "gevent",
        "clean",
    }
    assert mine - only_there == set(project.KEYS) - {"command"}


def test_what_chooses_small_apps_and_what_an_app_needs_do_not_mix() -> None:
    for given in (["--all", "--url", "http://127.0.0.1/"], ["--gevent", "--", "python3", "app.py"]):
        done = CliRunner().invoke(drill, given)
        assert isinstance(done.exception, ConfigurationError)
        assert "the drill's own small apps" in str(done.exception)


def test_a_command_makes_it_an_app_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = options.order(project.merged({"repeat": 3})[0])
    assert small.app is None
    assert {each.key for each in small.drill.contenders} >= {"unbroken/psycopg", "one"}
    assert [each.name for each in small.drill.scenarios] == [
        *("idle", "kill", "restart", "crash", "freeze", "fork", "forget", "hold", "storm")
    ]
    with pytest.raises(ConfigurationError, match="the app's command"):
        options.order(project.merged({"rate": 5.0})[0])
    again = options.order({**GOOD, "repeat": 3})
    assert (again.app is not None, again.drill.repeat) == (True, 3)


def test_a_shown_command_line_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["unbroken", "drill", "--db", "mysql://u:se:cret@db/shop", "--", "run", "it's"]
    )
    shown = command.facts(options.order(GOOD))["command"]
    assert shown == "unbroken drill --db 'mysql://u:***@db/shop' --seed 1 -- run 'it'\\''s'"
