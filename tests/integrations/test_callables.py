"""What cannot be a unit of work is refused by the integrations as by the pools, before anything
runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from unbroken import ConfigurationError

URL = "postgresql+psycopg://app@127.0.0.1:1/shop"


async def coroutine(*_: Any) -> None:
    raise AssertionError("it ran")


def generator(*_: Any) -> Any:
    raise AssertionError("it ran")
    yield


async def async_generator(*_: Any) -> Any:
    raise AssertionError("it ran")
    yield


def django_unit(function: Any) -> Any:
    import unbroken.django

    return unbroken.django.replayable(function)


def peewee_unit(function: Any) -> Any:
    import unbroken.peewee

    return unbroken.peewee.connect(URL).unit(function)


def peewee_atomic(function: Any) -> Any:
    import unbroken.peewee

    return unbroken.peewee.connect(URL).atomic()(function)


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (django_unit, generator),
        (django_unit, async_generator),
        (django_unit, functools.partial(generator, 1)),
        (peewee_unit, coroutine),
        (peewee_unit, functools.partial(coroutine, 1)),
        (peewee_unit, async_generator),
        (peewee_atomic, coroutine),
        (peewee_atomic, generator),
    ],
)
def test_it_is_refused_with_its_name_and_line(make: Callable[[Any], Any], function: Any) -> None:
    with pytest.raises(ConfigurationError) as told:
        make(function)
    assert f"{__file__}:" in str(told.value)


def test_a_result_that_is_still_to_be_awaited_is_refused() -> None:
    hidden = django_unit(lambda: coroutine())
    with pytest.raises(ConfigurationError, match="returned the coroutine"):
        hidden()
