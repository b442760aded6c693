"""``unbroken.flask``: Flask apps, unbroken."""

from unbroken.extras import needed

with needed("flask", "flask", "werkzeug", extra="flask"):
    from unbroken.integrations.web.flask import Unbroken, no_replay, replay

__all__ = ["Unbroken", "no_replay", "replay"]
