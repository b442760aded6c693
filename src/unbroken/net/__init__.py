"""Sockets, below every driver: all that can be seen of a connection, and done to it, by its
descriptor alone.

Nothing here owns a descriptor: the driver does, and no function closes one that it was given.
"""
