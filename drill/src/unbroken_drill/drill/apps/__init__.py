"""``unbroken drill --url … -- COMMAND``: the drill of anybody's app, in any language.

A private server, a fault proxy before it, the user's own app before that, and HTTP traffic as its
users would send it. ``docs/drill.md`` says what each number means.
"""
