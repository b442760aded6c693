"""``unbroken drill``: real servers, real faults, and a league table of the contenders.

It starts private servers (:mod:`unbroken_drill.servers`) and lets each contender carry traffic in a
process of its own. It breaks the server under that traffic, and counts the errors that a user would
have seen. ``docs/drill.md`` explains each number.
"""
