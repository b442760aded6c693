"""The decisions of a pool: who owns each connection, which caller is next, whether the server is
away. No I/O, no clock, no threads.
"""
