"""``unbroken run COMMAND``: programs that nobody changes get the plugin and units of work, and
are otherwise as they were.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from unbroken import launcher
from unbroken.errors import ConfigurationError

RUN = "import sys; from unbroken.cli import main; main(['run', *sys.argv[1:]])"


def start(
    *words: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``unbroken run`` with *words*; it finds unbroken, and what is in *folder*, on its
    path.
    """
    path = [*([str(folder)] if folder else []), *(each for each in sys.path if each)]
    given = {key: value for key, value in os.environ.items() if not key.startswith("UNBROKEN_")}
    given |= {"PYTHONPATH": os.pathsep.join(path), **environment}
    return subprocess.run(
        [sys.executable, "-c", RUN, *words],
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(source: str, *options: str, folder: Path | None = None, **environment: str) -> str:
    done = start(
        *options, sys.executable, "-c", textwrap.dedent(source), folder=folder, **environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


POOLS = """
    import sqlalchemy as sa
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine
    url = "postgresql+psycopg://u:p@127.0.0.1/d"
    made = [create_engine(url), sa.create_engine(url, pool_size=3),
            sa.engine_from_config({"sqlalchemy.url": url}),
            create_async_engine(url).sync_engine, create_engine(url, poolclass=sa.NullPool), create_engine("sqlite://")]
    print(*(type(each.pool).__name__ for each in made))
"""


def test_all_engines_of_the_program_get_the_plugin_and_it_is_imported_only_with_sqlalchemy() -> (
    None
):
    assert program(POOLS).split() == [
        *["UnbrokenQueuePool"] * 3,
        "AsyncUnbrokenQueuePool",
        "NullPool",
        "SingletonThreadPool",
    ]
    assert (
        program("import sys; print({'sqlalchemy', 'unbroken.sync'} & sys.modules.keys())")
        == "set()\n"
    )


@pytest.mark.parametrize("word", ["0", "no", "Off", "false", ""])
def test_engines_stay_as_they_are_if_that_is_asked_for(word: str) -> None:
    assert "Unbroken" not in program(POOLS, UNBROKEN_SQLALCHEMY=word)


def test_the_variable_has_settings_for_engines_that_say_nothing_else() -> None:
    source = """
        from sqlalchemy import create_engine
        url = "postgresql+psycopg://u:p@127.0.0.1/d"
        own = create_engine(url, pool_size=7, unbroken={"leak_after": 4})
        for each in (create_engine(url), create_engine(url + "?leak_after=3"), own):
            settings = each.pool._plan.settings
            print(each.pool.size(), settings.leak_after, settings.outage_wait)
    """
    said = program(source, UNBROKEN_SQLALCHEMY="leak_after=2&max_size=4&outage_wait=9")
    assert said == "4 2.0 9.0\n4 3.0 9.0\n7 4 9.0\n"


def test_what_the_program_starts_is_started_so_as_well() -> None:
    inner = textwrap.dedent(POOLS)
    assert program(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    ).startswith("UnbrokenQueuePool")
    source = """
        import multiprocessing
        from sqlalchemy import create_engine
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(repr, (1,)))
    """
    assert program(source) == "1\n"


def test_the_named_functions_become_units_of_work(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "class Store:\n    def put(self): pass\n    def get(self): pass\n"
    )
    source = """
        from theirs import Store
        print(*(hasattr(each, '__unbroken_unit__') for each in (Store.put, Store.get)))
    """
    assert program(source, "--units", "theirs:Store.put", folder=tmp_path) == "True False\n"
    assert (
        program(
            source, "--units=theirs:Store.put", folder=tmp_path, UNBROKEN_UNITS="theirs:Store.get"
        )
        == "True True\n"
    )
    assert program(source, "--", folder=tmp_path) == "False False\n"


def test_a_wrong_name_is_told_and_the_program_runs(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("class Store:\n    def put(self): pass\n")
    done = start("--units", "thiers:Store", sys.executable, "-c", "print('runs')", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "runs\n")
    assert done.stderr == (
        "unbroken: 'thiers:Store': there is no module 'thiers'; did you mean 'theirs'? [UB511]\n"
    )


def test_the_program_sees_its_own_path_and_another_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.theirs = __file__\n")
    source = """
        import sys, json, sitecustomize
        print(json.dumps([theirs, sitecustomize.__file__, sys.path]))
    """
    theirs, module, path = json.loads(program(source, folder=tmp_path))
    assert theirs == module == str(tmp_path / "sitecustomize.py")
    assert launcher.SITE not in path
    alone = json.loads(
        program(
            "import sys, json, sitecustomize; print(json.dumps([sitecustomize.__file__, sys.path]))"
        )
    )
    assert launcher.SITE not in alone[1]


def test_a_python_without_unbroken_runs_and_says_so_once() -> None:
    source = "import sys; sys.path[:] = [p for p in sys.path if 'unbroken' not in p]; print('runs')"
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": launcher.SITE, "UNBROKEN_SQLALCHEMY": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", source],
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "runs\n"  # -S: nothing of a site is run
    done = subprocess.run(
        [sys.base_prefix + "/bin/python3", "-c", source],
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "runs\n"
    assert re.search(r"^unbroken: not active, because \S+ cannot import it: ", done.stderr, re.M)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a command"),
        (["--units"], "--units needs a list of names"),
        (["--what", "python"], "has no option '--what'"),
        (["--unit", "a:b", "python"], "has no option '--unit' (did you mean '--units'?)"),
        (["--units", "a b:c-d", "python"], "'b:c-d' is not a function's name"),
        ([""], "needs a command"),
        (["--", ""], "needs a command"),
        (
            ["there-is-no-such-command"],
            "cannot run 'there-is-no-such-command': No such file or directory",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], said: str) -> None:
    done = start(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("unbroken: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_wrong_settings_are_told_before_the_program_starts() -> None:
    done = start(sys.executable, "-c", "print(1)", UNBROKEN_SQLALCHEMY="leek_after=2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'leak_after'" in done.stderr
    with pytest.raises(ConfigurationError, match="must be 1, 0 or settings"):
        launcher.settings_in("please")


def test_help_is_printed() -> None:
    done = start("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: unbroken run ")


def test_the_command_is_listed_beside_those_of_the_second_distribution() -> None:
    words = [sys.executable, "-m", "unbroken", "--help"]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    said = subprocess.run(words, env=given, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert {"drill", "proxy", "run"} <= set(listed)


def test_the_exit_status_is_the_programs_own() -> None:
    assert start(sys.executable, "-c", "raise SystemExit(7)").returncode == 7
