"""peewee: its pooled databases under their own names, on an unbroken pool, with lazy queries that
cannot leak (docs/peewee.md).

The public names are in ``unbroken.peewee``.
"""
