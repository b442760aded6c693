"""Every message of unbroken has a code, such as ``UB203``, that leads to its paragraph in
docs/messages.md.

The catalogue has one module for each group of codes. A place that raises, notes or logs writes the
sentence with its numbers itself, and has the catalogue's entry put the code at its end::

    raise ConfigurationError(UNKNOWN_SETTING(f"unknown setting {name!r}; {hint}"))

One code is one situation with one remedy; several places may share it. A code is never given to
another situation, and new ones are appended to their group: applications and dashboards know them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One situation that unbroken tells about."""

    #: ``UB`` and three digits, of which the first is the group's.
    code: str
    #: What is true then, as one short sentence.
    title: str
    #: What is known besides, about data too.
    known: str
    #: What the reader can do.
    do: str

    def __call__(self, text: str) -> str:
        """*text*, the words of one occasion (or a format for them, in a log), with the code at its
        end. A text that ends with this code already is left as it is.
        """
        end = f" [{self.code}]"
        return text if text.endswith(end) else text + end
