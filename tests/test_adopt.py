"""``unbroken.adopt``: functions of others become units of work on import, all or nothing, and
nobody else notices.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import unbroken
from unbroken import ConfigurationError, importing
from unbroken.ledger.scope import current

SOURCE = '''
from abc import ABC, abstractmethod
from contextlib import contextmanager
import functools
from unbroken.ledger.scope import current


def inside():
    """Which unit of work this call is in."""
    return current()


def hidden(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)
    return call


class Base:
    def inherited(self):
        return current()

    def overridden(self):
        return ["base", current()]


class Store(Base):
    """Keeps things."""

    limit = 3

    def __init__(self, name="store"):
        self.name = name

    def put(self, key: str, /, value: int = 1, *, twice: bool = False) -> tuple:
        """Puts."""
        return key, value, twice, current()

    def outer(self):
        return current(), self.put("k")[3], self.other()

    @classmethod
    def make(cls, name):
        return cls(name), current()

    @staticmethod
    def other():
        return current()

    async def later(self):
        return current()

    def overridden(self):
        return [*super().overridden(), "store"]

    @property
    def size(self):
        return current()

    @functools.cached_property
    def cached(self):
        return current()

    def many(self):
        yield current()

    async def stream(self):
        yield current()

    @contextmanager
    def opened(self):
        yield current()

    def _private(self):
        return current()

    @hidden
    async def veiled(self):
        return current()

    bound = functools.partialmethod(put, "b")


class Special(Store):
    def put(self, *args, **kwargs):
        return "special", super().put(*args, **kwargs)


class Plan(ABC):
    @abstractmethod
    def go(self): ...

    def stop(self):
        return current()


class Empty(Base):
    pass


class Proud(type):
    def __setattr__(cls, name, value):
        raise TypeError("nothing changes here")


class Stone(metaclass=Proud):
    def put(self):
        return current()
'''

METHODS = ["put", "outer", "make", "other", "later", "overridden"]

_numbers = count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes a module with a name of its own, and gives the name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def make(source: str = SOURCE, name: str = "") -> str:
        name = name or f"adopted_{os.getpid()}_{next(_numbers)}"
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        for folder in reversed(path.relative_to(tmp_path).parents[:-1]):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield make
    for name in list(sys.modules):
        if any(name == each or each.startswith(f"{name}.") for each in names):
            del sys.modules[name]


@pytest.fixture
def adopt() -> Iterator[Callable[..., Any]]:
    """``unbroken.adopt``, undone in the end."""
    made: list[Any] = []

    def call(*names: str, **how: Any) -> Any:
        made.append(unbroken.adopt(*names, **how))
        return made[-1]

    yield call
    for each in made:
        each.undo()
    assert not importing._callbacks
    assert importing._FINDER not in sys.meta_path


# -- what is wrapped, and when ---------------------------------------------------------------------


@pytest.mark.parametrize("is_imported", [True, False])
@pytest.mark.parametrize("colon", [":", "."])
def test_a_class_is_adopted_at_once_or_on_import(write, adopt, is_imported, colon):
    name = write()
    if is_imported:
        importlib.import_module(name)
    adoption = adopt(f"{name}{colon}Store")
    assert (name in sys.modules) is is_imported
    assert (
        (adoption.waiting, bool(adoption.wrapped)) == ((), True)
        if is_imported
        else ((f"{name}{colon}Store",), False)
    )
    module = importlib.import_module(name)
    assert adoption.waiting == ()
    assert adoption.wrapped == tuple(f"{name}:Store.{method}" for method in METHODS)
    store = module.Store()
    assert store.put("k")[:3] == ("k", 1, False)
    assert all(
        unit is not None
        for unit in (
            store.put("k")[3],
            store.other(),
            module.Store.other(),
            module.Store.make("n")[1],
        )
    )
    assert asyncio.run(store.later()) is not None
    assert store.size is store.cached is store._private() is store.inherited() is None
    assert next(store.many()) is None
    assert current() is None


def test_an_adopted_method_that_calls_others_is_one_unit(write, adopt):
    module = importlib.import_module(name := write())
    adopt(f"{name}:Store")
    units = module.Store().outer()
    assert units[0] is not None
    assert all(unit is units[0] for unit in units)


def test_an_override_is_not_adopted_but_what_it_calls_is(write, adopt):
    module = importlib.import_module(name := write())
    adopt(f"{name}:Base", f"{name}:Store.put")
    assert module.Store().overridden()[1] is not None
    word, (_, _, _, unit) = module.Special().put("k")
    assert word == "special"
    assert unit is not None


def test_abstract_methods_stay_as_they_are(write, adopt):
    module = importlib.import_module(name := write())
    assert adopt(f"{name}:Plan").wrapped == (f"{name}:Plan.stop",)
    with pytest.raises(TypeError, match="abstract"):
        module.Plan()


def test_a_single_method_and_a_nested_class_can_be_named(write, adopt):
    name = write(
        """
            class Outer:
                class Inner:
                    def do(self): return 1
                    def undo(self): return 2
        """
    )
    assert adopt(f"{name}:Outer.Inner.do").wrapped == ()
    module = importlib.import_module(name)
    assert hasattr(module.Outer.Inner.do, "__unbroken_unit__")
    assert not hasattr(module.Outer.Inner.undo, "__unbroken_unit__")


def test_a_function_is_adopted_under_every_name_that_modules_have_for_it(write, adopt):
    name = write()
    other = write(f"from {name} import inside as mine")
    module, user = importlib.import_module(name), importlib.import_module(other)
    original = module.inside
    adoption = adopt(f"{name}:inside")
    assert module.inside() is not None
    assert user.mine is module.inside
    assert pickle.loads(pickle.dumps(user.mine)) is module.inside
    adoption.undo()
    assert user.mine is module.inside is original


def test_a_name_that_a_module_makes_when_it_is_asked_can_be_adopted(write, adopt):
    real = write()
    name = write(f"def __getattr__(name):\n    import {real}\n    return getattr({real}, name)\n")
    adoption = adopt(f"{name}:Store.put")
    importlib.import_module(name)
    assert adoption.wrapped == (f"{name}:Store.put",)
    assert sys.modules[real].Store().put("k")[3] is not None


def test_a_function_that_is_a_unit_already_is_not_wrapped_again(write, adopt):
    name = write("import unbroken\n@unbroken.replayable\ndef work(): return 1\n")
    module = importlib.import_module(name)
    before = module.work
    assert adopt(f"{name}:work").wrapped == ()
    assert module.work is before


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("Store.many", "{0}:Store.many' cannot be a unit of work: it is a generator"),
        ("Store.stream", "it is an async generator"),
        ("Store.opened", "it is made of a generator, whose work is done after the call"),
        ("Store.veiled", "it is a coroutine function behind a decorator that hides it"),
        ("Store.size", "it is a property, not a function"),
        ("Store.cached", "it is a functools.cached_property, not a function"),
        ("Store.bound", "it is a functools.partialmethod, not a function"),
        ("Store.limit", "it is an int, not a function"),
        ("Store.limit.real", "{0}:Store.limit is an int, not a class"),
        ("Store.inherited", "{0}:Store inherits 'inherited'; name {0}:Base.inherited"),
        ("Store.putt", "{0}:Store has no 'putt'; did you mean 'put'?"),
        ("Stoer", "{0} has no 'Stoer'; did you mean 'Store'?"),
        ("Empty", "defines no public method that can be a unit of work; it inherits from {0}:Base"),
        ("Stone", "{0}:Stone.put cannot be changed: TypeError: nothing changes here"),
    ],
)
@pytest.mark.parametrize("is_imported", [True, False])
def test_what_cannot_be_a_unit_is_refused_before_anything_is_wrapped(
    write, adopt, caplog, rest, words, is_imported
):
    name = write()
    said = words.format(name)
    if is_imported:
        module = importlib.import_module(name)
        with pytest.raises(ConfigurationError) as caught:
            adopt(f"{name}:Store.put", f"{name}:{rest}")
        assert said in str(caught.value)
    else:
        adoption = adopt(f"{name}:Store.put", f"{name}:{rest}")
        module = importlib.import_module(name)  # an import never fails for it
        assert said in adoption.refused[0]
        assert adoption.wrapped == adoption.waiting == ()
        (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert said in record.getMessage()
        assert record.getMessage().endswith(f"no function of {name} was made a unit of work")
    assert "\n" not in said
    assert module.Store().put("k")[3] is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "collectionz:OrderedDict",
            "there is no module 'collectionz'; did you mean 'collections'?",
        ),
        (
            "concurrent.futurs:Executor",
            "there is no module 'concurrent.futurs'; did you mean 'concurrent.futures'?",
        ),
        ("nowhere.at.all:Thing", "there is no module 'nowhere.at.all'"),
        (
            "concurrent.futures",
            "'concurrent.futures' is a module; name a class or a function in it",
        ),
        ("collections:OrderedDict", "is a class written in C, which cannot be changed"),
        ("collections:deque.append", "is a method_descriptor, not a function"),
        ("time:sleep", "is a builtin_function_or_method, not a function"),
        ("a b", "'a b' names no function"),
        ("", "'' names no function"),
        ("json:", "'json:' names no function"),
        (":dumps", "':dumps' names no function"),
        ("a:b:c", "'a:b:c' names no function"),
        (7, "7 names no function"),
        (dict, "<class 'dict'> names no function"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(adopt, name, words):
    with pytest.raises(ConfigurationError) as caught:
        adopt(name)
    assert words in str(caught.value)


def test_no_name_is_refused(adopt):
    with pytest.raises(ConfigurationError, match="needs a name"):
        adopt()


def test_a_module_that_adopts_its_own_functions_while_it_is_imported_is_told(write, adopt):
    name = write("import unbroken\ndef work(): return 1\nunbroken.adopt(__name__ + ':work')\n")
    with pytest.raises(ConfigurationError, match="is being imported at this moment"):
        importlib.import_module(name)


# -- nobody notices --------------------------------------------------------------------------------


def test_an_adopted_class_is_the_same_class(write, adopt):
    module = importlib.import_module(name := write())
    cls, before = module.Store, inspect.signature(module.Store.put)
    adopt(f"{name}:Store")
    assert module.Store is cls
    assert inspect.signature(cls.put) == before
    assert (cls.put.__name__, cls.put.__qualname__, cls.put.__module__, cls.put.__doc__) == (
        "put",
        "Store.put",
        name,
        "Puts.",
    )
    assert inspect.iscoroutinefunction(cls.later)
    assert "def put(self, key" in inspect.getsource(cls.put)
    assert isinstance(inspect.getattr_static(cls, "make"), classmethod)
    assert isinstance(inspect.getattr_static(cls, "other"), staticmethod)
    assert isinstance(module.Special(), cls)
    assert pickle.loads(pickle.dumps(module.Store("here"))).name == "here"
    assert pickle.loads(pickle.dumps(module.Store("here").put))("k")[3] is not None


def test_an_adopted_module_is_imported_as_any_other(write, adopt):
    plain = importlib.import_module(write())
    name = write()
    adopt(f"{name}:Store")
    module = importlib.import_module(name)
    assert type(module.__loader__) is type(plain.__loader__)
    assert module.__spec__.loader is module.__loader__
    assert module.__spec__.has_location
    assert inspect.getsource(module.Base).startswith("class Base")
    spec = importlib.util.find_spec(name)
    assert spec is module.__spec__


def test_modules_of_namespaces_and_archives_are_found_without_importing_anything(
    write, adopt, tmp_path, monkeypatch
):
    inner = tmp_path / "nobodys_space" / "inner"
    inner.mkdir(parents=True)
    (inner / "shop.py").write_text("class Store:\n    def put(self): pass\n")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("packed_shop.py", "class Store:\n    def put(self): pass\n")
    monkeypatch.syspath_prepend(tmp_path / "packed.zip")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["nobodys_space.inner.shop", "packed_shop"]
    adoption = adopt(*(f"{name}.Store" for name in names))
    assert not {"nobodys_space", *names} & sys.modules.keys()
    try:
        loaders = [importlib.import_module(name).__loader__ for name in names]
        assert adoption.wrapped == tuple(f"{name}:Store.put" for name in names)
        assert [type(each).__name__ for each in loaders] == ["SourceFileLoader", "zipimporter"]
    finally:
        for name in ("nobodys_space", "nobodys_space.inner", *names):
            sys.modules.pop(name, None)


def test_a_module_that_is_loaded_at_its_first_use_is_adopted_then(write, adopt):
    name = write()
    adoption = adopt(f"{name}:Store.put")
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert adoption.wrapped == ()
    assert module.Store().put("k")[3] is not None
    assert adoption.wrapped == (f"{name}:Store.put",)


def test_an_error_of_the_module_itself_is_its_own(write, adopt):
    name = write("1 / 0")
    adoption = adopt(f"{name}:work")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(name)
    assert adoption.waiting == (f"{name}:work",)
    assert adoption.refused == ()


def test_a_module_that_is_loaded_again_is_adopted_again(write, adopt):
    name = write()
    adopt(f"{name}:Store.put", f"{name}:inside")
    module = importlib.import_module(name)
    first = module.Store
    importlib.reload(module)
    assert module.Store is not first
    assert module.Store().put("k")[3] is not None
    assert module.inside() is not None


def test_it_is_said_once_what_was_wrapped(write, adopt, caplog):
    caplog.set_level(logging.INFO, "unbroken")
    name = write()
    importlib.import_module(name)
    adopt(f"{name}:Store")
    adopt(f"{name}:Store")
    (record,) = [each for each in caplog.records if each.name == "unbroken"]
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith(", ".join(f"{name}:Store.{method}" for method in METHODS))


# -- once, and undone ------------------------------------------------------------------------------


def test_adopted_twice_is_wrapped_once_and_stays_until_both_are_undone(write, adopt):
    module = importlib.import_module(name := write())
    original = module.Store.__dict__["put"]
    first = adopt(f"{name}:Store.put")
    put = module.Store.__dict__["put"]
    second = adopt(f"{name}:Store")
    assert module.Store.__dict__["put"] is put
    assert put.__wrapped__ is original
    first.undo()
    assert module.Store.__dict__["put"] is put
    assert first.wrapped == ()
    second.undo()
    second.undo()
    assert module.Store.__dict__["put"] is original
    assert not hasattr(module.Store.other, "__unbroken_unit__")
    assert isinstance(module.Store.__dict__["make"], classmethod)


def test_as_a_context_manager_it_is_undone_at_the_end(write):
    name = write()
    with unbroken.adopt(f"{name}:Store.put") as adoption:
        module = importlib.import_module(name)
        assert adoption.wrapped == (f"{name}:Store.put",)
    assert module.Store().put("k")[3] is None


def test_what_was_undone_before_the_import_is_not_adopted(write, adopt):
    name = write()
    adopt(f"{name}:Store").undo()
    assert importlib.import_module(name).Store().put("k")[3] is None


def test_what_others_put_in_its_place_stays(write, adopt):
    module = importlib.import_module(name := write())
    adoption = adopt(f"{name}:Store.put")
    module.Store.put = theirs = lambda self: "theirs"
    adoption.undo()
    assert module.Store.__dict__["put"] is theirs


def test_many_threads_adopt_and_import_the_same_and_it_is_wrapped_once(write, adopt):
    for _ in range(20):
        name = write()
        barrier = threading.Barrier(8)
        made: list[Any] = []

        def adopts(name=name, barrier=barrier, made=made):
            barrier.wait()
            made.append(adopt(f"{name}:Store"))

        def imports(name=name, barrier=barrier):
            barrier.wait()
            importlib.import_module(name)

        threads = [threading.Thread(target=each) for each in (adopts, imports) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        importlib.import_module(
            write("...")
        )  # if an import was on its way when the first adopted, it is told now
        put = sys.modules[name].Store.__dict__["put"]
        assert hasattr(put, "__unbroken_unit__")
        assert not hasattr(put.__wrapped__, "__unbroken_unit__")
        assert len(made) == 4
        assert all(each.wrapped and not each.waiting for each in made)


def test_a_forked_child_finds_it_wrapped_once_and_can_adopt_more(write, adopt):
    first, second = write(), write()
    adopt(f"{first}:Store", f"{second}:Store")
    importlib.import_module(first)

    def child(out):
        inner = importlib.import_module(second)
        unbroken.adopt(f"{first}:Base")
        outer = importlib.import_module(first)
        once = [
            not hasattr(each.put.__wrapped__, "__unbroken_unit__")
            for each in (inner.Store, outer.Store)
        ]
        out.send([*once, outer.Store().inherited() is not None])

    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.poll(30)
    assert here.recv() == [True, True, True]
    process.join(30)
    assert process.exitcode == 0


# -- the settings ----------------------------------------------------------------------------------


def run(program: str, **environment: str) -> str:
    given = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.mark.parametrize(
    ("made", "environment"),
    [
        ("unbroken.Pool('sqlite:///:memory:', units=['{0}:Store.put', '{0}:Base'])", ""),
        ("unbroken.Pool('sqlite:///:memory:?units={0}:Store.put,{0}:Base')", ""),
        ("unbroken.Pool('sqlite:///:memory:')", "{0}:Store.put, {0}:Base"),
        ("unbroken.Pool('sqlite:///:memory:', units=['{0}:Base'])", "{0}:Store.put"),
        (
            "unbroken.AsyncPool('mysql+asyncmy://u@127.0.0.1/d',"
            " units=('{0}:Store.put', '{0}:Base'))",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d?plugin=unbroken&units={0}:Store.put,{0}:Base')",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d', plugins=['unbroken'],"
            " unbroken=dict(units=['{0}:Store.put', '{0}:Base']))",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d', plugins=['unbroken'])",
            "{0}:Store.put,{0}:Base",
        ),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_setting_or_the_environment_names_them(write, made, environment, when):
    name = write()
    program = f"""
        import unbroken
        from sqlalchemy import create_engine
        {"import " + name if when == "before" else ""}
        pool = {made.format(name)}
        import {name}
        store = {name}.Store()
        print(*(unit is not None for unit in (store.put("k")[3], store.inherited(), store.other())))
    """
    assert run(program, UNBROKEN_UNITS=environment.format(name)) == "True True False\n"


@pytest.mark.parametrize("wrong", ["collections:OrderedDict", [7], 7, None, {}])
def test_names_in_a_setting_are_a_list(wrong):
    with pytest.raises(ConfigurationError, match=r"units=.* must be a list of names"):
        unbroken.Pool("sqlite:///:memory:", units=wrong)


@pytest.mark.parametrize("environment", ["", "collectionz:OrderedDict"])
def test_a_wrong_name_in_a_setting_is_told_when_the_pool_is_made(monkeypatch, environment):
    monkeypatch.setenv("UNBROKEN_UNITS", environment)
    with pytest.raises(ConfigurationError, match="did you mean 'collections'"):
        unbroken.Pool(
            "sqlite:///:memory:", **({} if environment else {"units": ["collectionz:OrderedDict"]})
        )


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["Pool", "SQLAlchemy"])
def test_a_lost_connection_costs_the_caller_of_an_adopted_method_nothing(
    write, adopt, unbroken_postgres, way
):
    opened = {"Pool": "pool.connection()", "SQLAlchemy": "engine.begin()"}[way]
    execute = {"Pool": "conn.execute", "SQLAlchemy": "conn.exec_driver_sql"}[way]
    module = importlib.import_module(
        name := write(f"""
            import unbroken, sqlalchemy
            url = {unbroken_postgres.url("psycopg")!r}
            pool = unbroken.Pool(url)
            engine = sqlalchemy.create_engine(url, plugins=["unbroken"])
            calls = 0

            class Store:
                def put(self, number, between):
                    global calls
                    calls += 1
                    with {opened} as conn:
                        {execute}("INSERT INTO adopted VALUES (1)")
                        between(calls)
                        {execute}("INSERT INTO adopted VALUES (2)")
                    return number
        """)
    )
    unbroken_postgres.admin("CREATE TABLE adopted (n int)")
    unbroken_postgres.admin(f"GRANT ALL ON adopted TO {unbroken_postgres.user}")
    adopt(f"{name}:Store")
    try:
        assert (
            module.Store().put(7, lambda calls: calls == 1 and unbroken_postgres.kill_sessions())
            == 7
        )
        assert module.calls == 2
        assert [row[0] for row in unbroken_postgres.admin("SELECT n FROM adopted ORDER BY n")] == [
            "1",
            "2",
        ]
    finally:
        module.pool.close()
        module.engine.dispose()
        unbroken_postgres.admin("DROP TABLE adopted")
