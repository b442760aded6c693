"""``unbroken.adopt``: functions of others become units of work on import, all or nothing, and
nobody else notices.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import pickle
import sys

import pytest

from unbroken import ConfigurationError
from unbroken.ledger.scope import current

from .sample import METHODS

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
        ("Store.inherited", "{0}:Store inherits 'inherited'; write {0}:Base.inherited"),
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
        assert f"no function of {name} was made a unit of work [UB514]" in record.getMessage()
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
