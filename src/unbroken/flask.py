"""``unbroken.flask``: Flask apps, unbroken."""

from unbroken.integrations.web.flask import Unbroken, no_replay, replay

__all__ = ["Unbroken", "no_replay", "replay"]
