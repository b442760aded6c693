"""Requests of web frameworks: the answer to a client, and when a request is run again."""
