"""The app of wsgi_site.py behind what many write: any error of the database's is answered 503,
please try again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from wsgi_site import _app


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Do not ask what became of the request."""
    if environ["PATH_INFO"] == "/healthz":
        start_response("200 OK", [])
        return [b"ok"]
    try:
        return _app(environ, start_response)
    except Exception:
        traceback.print_exc()
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return [b'{"error": "service unavailable"}']
