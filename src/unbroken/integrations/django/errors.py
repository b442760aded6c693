"""unbroken's errors in the form that Django's users catch."""

from __future__ import annotations

from django.db.utils import OperationalError

from unbroken import errors
from unbroken.errors import UnbrokenError, for_driver


def translated(exc: UnbrokenError) -> BaseException:
    """Return *exc* in the form that Django's users catch: OutageError and OperationalError in
    one.
    """
    kind = next(
        cls
        for cls in type(exc).__mro__
        if cls.__module__ == errors.__name__ and getattr(errors, cls.__name__, None) is cls
    )
    made: BaseException = for_driver(kind, OperationalError, str(exc), **exc.__dict__)
    return made
