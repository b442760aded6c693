"""``unbroken drill --url … -- COMMAND``: the drill of any app, in any language.

It has a private server, a fault proxy before it, the user's own app before that, and HTTP traffic
as its users would send it. ``docs/drill.md`` explains each number.
"""
