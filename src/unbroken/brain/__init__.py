"""A pool's decisions: which caller owns each connection, which caller is next, whether the server
is down. No I/O, no clock, no threads.
"""
