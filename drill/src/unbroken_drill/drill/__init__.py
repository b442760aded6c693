"""``unbroken drill``: real servers, real faults, and a league table of who noticed.

It starts private servers (:mod:`unbroken_drill.servers`), lets each contender carry traffic in a
process of its own, breaks the server under it, and counts what a user would have seen.
``docs/drill.md`` says what each number means.
"""
