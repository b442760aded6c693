"""drill.toml: a project's own drill. Every option of the command line, and scenarios of its own.

An unknown key is refused, with the nearest known one. A drill that silently omits an intended part
is worse than none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.scenarios import Scenario, scenario
from unbroken_drill.drill.steps import nearest
from unbroken_drill.messages import BAD_OPTION_VALUE, PROJECT_FILE


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


_Kind = tuple[str, Callable[[object], bool]]
_TEXT: Final[_Kind] = ("a text", _is_text)
_TEXTS: Final[_Kind] = (
    "a text or a list of texts",
    lambda value: _is_text(value) or _is_texts(value),
)
_NUMBER: Final[_Kind] = ("a number", _is_number)
_WHOLE: Final[_Kind] = ("a whole number", _is_whole)
_FLAG: Final[_Kind] = ("true or false", lambda value: isinstance(value, bool))

#: Every option that the file can hold, spelled as on the command line with ``_`` for ``-``.
KEYS: Final[Mapping[str, _Kind]] = {
    **dict.fromkeys(("command", "servers", "db", "driver", "setup", "setup_sql", "method"), _TEXT),
    **dict.fromkeys(("body", "json", "html", "folder", "topology"), _TEXT),
    **dict.fromkeys(("url", "env", "header", "scenarios", "judge"), _TEXTS),
    **dict.fromkeys(("rate", "timeout", "start_timeout"), _NUMBER),
    **dict.fromkeys(("concurrency", "seed", "jobs", "repeat", "max_errors"), _WHOLE),
    "harm": _FLAG,
}

_SCENARIO: Final[Mapping[str, _Kind]] = {
    "name": _TEXT, "title": _TEXT, "steps": ("a list of texts", _is_texts),
    "server_idle_limit": _WHOLE,
}  # fmt: skip


#: The file that is read if it exists, without an option that names it.
CONFIG: Final = "drill.toml"


def merged(given: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return the command line's options *given* over those of the file, and the file, if any."""
    file = (
        Path(given["config"])
        if given.get("config")
        else Path(CONFIG)
        if Path(CONFIG).exists()
        else None
    )
    found = read(file) if file is not None else {}
    return {**found, **stated(given)}, file


def stated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given explicitly."""
    found = {
        name: value
        for name, value in given.items()
        if value is not None and value != () and value is not False
    }
    if "scenarios" in found:
        found["scenarios"] = names_of(found["scenarios"])
    return found


def names_of(text: str) -> list[str]:
    """Return the names of a comma-separated list. Raises ConfigurationError for an empty one."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"the list {text!r} is empty; write names, separated by commas")
        )
    return found


def read(path: Path) -> dict[str, Any]:
    """Return the file's contents: options by name, ``compare`` (name -> command) and ``own`` (the
    project's scenarios).

    Raises ConfigurationError for an invalid file, in one line that names it.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(PROJECT_FILE(f"{path}: {error.strerror}")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(PROJECT_FILE(f"{path}: {error}")) from None
    try:
        return _options(document)
    except ConfigurationError as error:
        raise ConfigurationError(PROJECT_FILE(f"{path}: {error}")) from None


def _options(document: dict[str, Any]) -> dict[str, Any]:
    compare, own = document.pop("compare", None), document.pop("scenario", None)
    _check(document, KEYS, "", more=("compare", "scenario"))
    found: dict[str, Any] = {
        key: _as_list(value) if KEYS[key] is _TEXTS else value for key, value in document.items()
    }
    if compare is not None:
        if (
            not isinstance(compare, dict)
            or not compare
            or not all(isinstance(text, str) for text in compare.values())
        ):
            raise ConfigurationError(
                PROJECT_FILE(
                    "compare must be a table of names and commands: [compare], then plain ="
                    ' "gunicorn app:app"'
                )
            )
        found["compare"] = compare
    found["own"] = [_scenario(each, at) for at, each in enumerate(_tables(own), 1)]
    names = [each.name for each in found["own"]]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(PROJECT_FILE(f"two scenarios have the name {name!r}"))
    return found


def _tables(own: object) -> list[dict[str, Any]]:
    if own is None:
        return []
    if not isinstance(own, list) or not all(isinstance(each, dict) for each in own):
        raise ConfigurationError(PROJECT_FILE("scenario must be a list of tables: [[scenario]]"))
    return own


def _scenario(table: dict[str, Any], at: int) -> Scenario:
    where = f"scenario {table.get('name', f'no. {at}')!r}: "
    _check(table, _SCENARIO, where)
    for key in ("name", "steps"):
        if key not in table:
            raise ConfigurationError(PROJECT_FILE(f"{where}{key} is missing"))
    limit = table.get("server_idle_limit")
    if limit is not None and limit < 1:
        raise ConfigurationError(
            PROJECT_FILE(
                f"{where}server_idle_limit is {limit}, but must be a whole number of at least 1"
            )
        )
    return scenario(table["name"], table.get("title", ""), table["steps"], limit)


def _check(
    table: Mapping[str, Any], known: Mapping[str, _Kind], where: str, more: tuple[str, ...] = ()
) -> None:
    for key, value in table.items():
        if key not in known:
            names = (*known, *more)
            raise ConfigurationError(
                PROJECT_FILE(
                    f"{where}unknown key {key!r}{nearest(key, names)}; known: {', '.join(names)}"
                )
            )
        words, is_right = known[key]
        if not is_right(value):
            raise ConfigurationError(PROJECT_FILE(f"{where}{key} = {value!r} must be {words}"))


def _as_list(value: object) -> list[str]:
    return value if isinstance(value, list) else [str(value)]
