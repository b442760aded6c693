"""peewee: its pooled databases by name, on a pool that does not break; lazy queries that cannot
leak. See docs/peewee.md.

The public names are in ``unbroken.peewee``.
"""
