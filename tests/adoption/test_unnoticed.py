"""An adopted class is the same to everybody else; it is wrapped once, and can be undone."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import multiprocessing
import pickle
import sys
import threading
import zipfile
from typing import Any

import pytest

import unbroken

from .sample import METHODS

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
    (record,) = [each for each in caplog.records if each.name == "unbroken.adoption"]
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
