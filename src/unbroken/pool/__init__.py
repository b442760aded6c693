"""The steps of a pool, written once for threads and for event loops."""
