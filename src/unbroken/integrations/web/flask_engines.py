"""Flask-SQLAlchemy's engines made unbroken, so that SQLALCHEMY_ENGINE_OPTIONS needs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbroken.integrations.web.exchange import log
from unbroken.messages.integrations import FLASK_TOO_LATE

_BACKENDS = ("mysql", "mariadb", "postgresql")
_HINT = (
    "set plugins=['unbroken'] in SQLALCHEMY_ENGINE_OPTIONS, or call unbroken.flask.Unbroken(app)"
    " before the engines are used"
)


def make_unbroken(app: Any) -> None:
    """Add the plugin to the configuration of *app*'s MySQL and PostgreSQL engines. Existing engines
    are created again, if they have not connected yet. An app that chose a pool class, or the
    plugin, is left unchanged.
    """
    config = app.config
    changed = False
    options = config.get("SQLALCHEMY_ENGINE_OPTIONS") or {}
    if _wants(config.get("SQLALCHEMY_DATABASE_URI") or options.get("url"), options):
        config["SQLALCHEMY_ENGINE_OPTIONS"] = _with_plugin(options)
        changed = True
    binds = dict(config.get("SQLALCHEMY_BINDS") or {})
    for key, bind in binds.items():
        given = bind if isinstance(bind, dict) else {"url": bind}
        if _wants(given.get("url"), given):
            binds[key] = _with_plugin(given)
            changed = True
    if binds:
        config["SQLALCHEMY_BINDS"] = binds
    extension = app.extensions.get("sqlalchemy")
    if changed and extension is not None:
        _make_anew(app, extension)


def _wants(url: Any, options: Mapping[str, Any]) -> bool:
    if (
        url is None
        or "unbroken" in options.get("plugins", ())
        or {"poolclass", "pool"} & set(options)
    ):
        return False
    text = str(url)
    return text.split(":", 1)[0].split("+", 1)[0] in _BACKENDS and "plugin=unbroken" not in text


def _with_plugin(options: Mapping[str, Any]) -> dict[str, Any]:
    return {**options, "plugins": [*options.get("plugins", ()), "unbroken"]}


def _make_anew(app: Any, extension: Any) -> None:
    """Create *app*'s engines again. Flask-SQLAlchemy disposes of an app's engines when it is
    initialised again, and creates others.
    """
    engines = getattr(extension, "_app_engines", {}).get(app, {})
    kept = {
        key: engines.pop(key)
        for key, engine in list(engines.items())
        if not _is_ours_to_make(engine)
    }
    if not engines or any(
        engine.pool.checkedin() + engine.pool.checkedout() for engine in engines.values()
    ):
        engines.update(kept)
        log.warning(
            "engines in use",
            FLASK_TOO_LATE(
                f"Flask-SQLAlchemy's engines are already in use and stay as they are; {_HINT}"
            ),
        )
        return
    del app.extensions["sqlalchemy"]
    teardown = getattr(extension, "_teardown_session", None)
    if teardown in app.teardown_appcontext_funcs:
        app.teardown_appcontext_funcs.remove(teardown)
    extension.init_app(app)
    engines.update(kept)


def _is_ours_to_make(engine: Any) -> bool:
    """Return whether the engine is not SQLite's, whose pool may be all of the database."""
    return engine.dialect.name in _BACKENDS and hasattr(engine.pool, "checkedin")
