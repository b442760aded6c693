"""The brain decides: who has a connection, who waits, is the server away? No I/O, no clock, no threads."""
