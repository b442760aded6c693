"""The two distributions: what is in each wheel, and that the first is complete without the
second.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIAL = """
import sys
before = set(sys.modules)
import unbroken
[getattr(unbroken, name) for name in unbroken.__all__]
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
with unbroken.Pool("sqlite:///trial.db", max_size=2) as pool:
    with pool.connection() as conn:
        conn.execute("CREATE TABLE t (n)")
    pool.run(lambda conn: conn.execute("INSERT INTO t VALUES (7)"))
    with pool.connection() as conn:
        print(conn.execute("SELECT n FROM t").fetchone()[0], pool.stats().opened)
"""


class Wheel:
    """What is in a wheel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.names = archive.namelist()
            (info,) = {
                name.split("/")[0]
                for name in self.names
                if name.partition("/")[0].endswith(".dist-info")
            }
            self.metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
            points = f"{info}/entry_points.txt"
            self.entry_points = archive.read(points).decode() if points in self.names else ""
        self.packages = {name.split("/")[0] for name in self.names} - {info}

    @property
    def needs(self) -> list[str]:
        """What it needs without any extra."""
        return [
            line for line in self.metadata.get_all("Requires-Dist") or [] if "extra ==" not in line
        ]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheel, Wheel]:
    """Both, built from this folder; nothing is fetched for that."""
    made = []
    for folder in (ROOT, ROOT / "drill"):
        into = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (path,) = into.glob("*.whl")
        made.append(Wheel(path))
    return made[0], made[1]


class Venv:
    """A venv without anything but what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }

    def install(self, wheel: Wheel) -> None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.folder / "bin" / "python"),
            "install",
            "-q",
            "--no-index",
            "--no-deps",
        ]
        subprocess.run(
            [*command, "--disable-pip-version-check", str(wheel.path)],
            check=True,
            capture_output=True,
            env=self.env,
        )

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / program), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True
        )


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    return Venv(tmp_path / "venv")


def test_the_runtime_wheel_has_what_a_service_needs_and_nothing_for_tests(
    wheels: tuple[Wheel, Wheel],
) -> None:
    runtime, _drill = wheels
    assert runtime.packages == {"unbroken"}
    assert runtime.needs == []
    assert {"unbroken/sync.py", "unbroken/aio.py", "unbroken/py.typed", "unbroken/cli.py"} <= set(
        runtime.names
    )
    rooms = {name.split("/")[1] for name in runtime.names if name.startswith("unbroken/")}
    assert rooms & {"testing", "servers", "proxy", "fake.py", "drill", "proxy_command.py"} == set()
    assert "pytest" not in runtime.entry_points
    assert "unbroken = unbroken.cli:main" in runtime.entry_points


def test_the_drills_wheel_needs_the_runtime_of_its_own_version_and_has_the_plugin(
    wheels: tuple[Wheel, Wheel],
) -> None:
    runtime, drill = wheels
    version = runtime.metadata["Version"]
    assert (drill.metadata["Name"], drill.metadata["Version"]) == ("unbroken-drill", version)
    assert drill.packages == {"unbroken_drill"}
    assert drill.needs == [f"unbroken=={version}"]
    assert "[pytest11]\nunbroken = unbroken_drill.pytest_plugin" in drill.entry_points
    assert "console_scripts" not in drill.entry_points
    wanted = {
        "py.typed",
        "servers/mariadb.py",
        "proxy/engine.py",
        "fake.py",
        "pytest_plugin.py",
        "drill/command.py",
        "drill/page.css",
    }
    assert {f"unbroken_drill/{name}" for name in wanted} <= set(drill.names)
    extras = runtime.metadata.get_all("Requires-Dist") or []
    for extra in ("drill", "servers"):
        assert [
            line
            for line in extras
            if line.startswith("unbroken-drill") and f"extra == '{extra}'" in line
        ] != []
    assert all(f"=={version}" in line for line in extras if line.startswith("unbroken-drill"))


def test_both_wheels_say_the_version_that_the_library_says(wheels: tuple[Wheel, Wheel]) -> None:
    import unbroken

    assert {wheel.metadata["Version"] for wheel in wheels} == {unbroken.__version__}


def test_a_service_needs_the_runtime_wheel_alone(wheels: tuple[Wheel, Wheel], venv: Venv) -> None:
    venv.install(wheels[0])
    done = venv.run("python", "-c", TRIAL)
    assert done.stderr == ""
    assert done.stdout.split() == ["unbroken", "7", "1"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ["drill", "--all"],
            2,
            (
                "unbroken: the command drill is not installed. Install it:"
                ' pip install "unbroken[drill]"'
            ),
        ),
        (
            ["proxy", "mysql://h/d"],
            2,
            (
                "unbroken: the command proxy is not installed. Install it:"
                ' pip install "unbroken[drill]"'
            ),
        ),
        (
            ["dril"],
            2,
            (
                "unbroken: unknown command 'dril' (did you mean 'drill'?). Known: run. The commands"
                ' drill and proxy need another package: pip install "unbroken[drill]"'
            ),
        ),
    ],
)
def test_without_the_second_the_command_says_in_one_line_what_to_install(
    arguments: list[str], status: int, said: str, wheels: tuple[Wheel, Wheel], venv: Venv
) -> None:
    venv.install(wheels[0])
    for program, first in (("unbroken", []), ("python", ["-m", "unbroken"])):
        done = venv.run(program, *first, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", f"{said} [UB903]\n")


def test_without_the_second_the_command_still_tells_its_version_and_where_the_rest_is(
    wheels: tuple[Wheel, Wheel], venv: Venv
) -> None:
    venv.install(wheels[0])
    assert venv.run("unbroken", "--version").stdout == f"unbroken {wheels[0].metadata['Version']}\n"
    for arguments, status in ((["--help"], 0), ([], 2)):
        done = venv.run("unbroken", *arguments)
        assert done.returncode == status
        assert 'pip install "unbroken[drill]"' in done.stdout


def test_servers_and_proxy_work_with_the_two_wheels_and_nothing_else(
    wheels: tuple[Wheel, Wheel], venv: Venv
) -> None:
    for wheel in wheels:
        venv.install(wheel)
    program = (
        "from unbroken_drill import FaultProxy, servers, fake, faults, leaks, databases;"
        " print(FaultProxy.__name__)"
    )
    done = venv.run("python", "-c", program)
    assert (done.stdout, done.stderr) == ("FaultProxy\n", "")
    done = venv.run("unbroken", "drill")
    assert (done.returncode, done.stderr) == (
        2,
        'unbroken: the command needs click and rich. Install them: pip install "unbroken[drill]"\n',
    )
