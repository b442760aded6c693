"""The body of a request that a view may read more than once: from its beginning in each attempt."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest
from django.http.request import RawPostDataException, UnreadablePostError
from django.utils.datastructures import MultiValueDict

#: The attributes that Django makes from a body. Another attempt makes them again.
_PARSED = ("_post", "_files", "_upload_handlers")


class Body:
    """The whole body of *request*, kept."""

    def __init__(self, request: HttpRequest, content: bytes | None) -> None:
        self._request, self._content = request, content
        self._made = {name: request.__dict__[name] for name in _PARSED if name in request.__dict__}

    @classmethod
    def of(cls, request: HttpRequest, max_body: int) -> Body | None:
        """Keep the body of *request*. None: it is longer than *max_body* (bytes), was read in part,
        or cannot be read.
        """
        meta = request.META
        length = meta.get("CONTENT_LENGTH") or "0"
        if not meta.get("HTTP_TRANSFER_ENCODING") and length == "0":
            return cls(request, None)
        if not length.isdigit() or not 0 < int(length) <= max_body:
            return None
        try:
            return cls(request, request.body)
        except (RawPostDataException, UnreadablePostError, RequestDataTooBig):
            return None  # the view gets the same error

    def rewind(self) -> None:
        """Make the whole body readable again, by any method, also below Django."""
        if self._content is None:
            return
        request = self._request
        for name in _PARSED:
            request.__dict__.pop(name, None)
        request.__dict__.update(self._made)
        for _, files in self._made.get("_files", MultiValueDict()).lists():
            for file in files:
                file.seek(0)
        request._stream = BytesIO(self._content)
        if "wsgi.input" in request.META:
            request.META["wsgi.input"] = BytesIO(self._content)


def request_in(given: tuple[Any, ...]) -> HttpRequest | None:
    """Return the request among a view's arguments, also a method's, also in Django REST framework's
    wrapper.
    """
    for each in given[:2]:
        if isinstance(each, HttpRequest):
            return each
        wrapped = getattr(each, "_request", None)
        if isinstance(wrapped, HttpRequest):
            return wrapped
    return None


def longest() -> int:
    """Return the setting ``max_body`` of UNBROKEN, in bytes."""
    given: int = getattr(settings, "UNBROKEN", {}).get("max_body", 1 << 20)
    return given
