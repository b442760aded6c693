"""Every message of unbroken has a code, such as ``UB203``, that leads to its paragraph in
docs/messages.md.

The catalogue has one module for each group of codes. The code that raises, notes or logs writes the
text with its numbers, and calls the catalogue's entry, which appends the code::

    raise ConfigurationError(UNKNOWN_SETTING(f"unknown setting {name!r}; {hint}"))

A code stands for one situation with one remedy. Several places can share a code. A code never
changes its meaning, because applications and dashboards use it. New codes go to the end of their
group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One situation that unbroken reports."""

    #: ``UB`` and three digits. The first digit is the group's.
    code: str
    #: The situation, as one short sentence.
    title: str
    #: Further facts, also about data.
    known: str
    #: The remedy.
    do: str

    def __call__(self, text: str) -> str:
        """Return *text*, a message or a format for one, with the code at its end, once."""
        end = f" [{self.code}]"
        return text if text.endswith(end) else text + end
