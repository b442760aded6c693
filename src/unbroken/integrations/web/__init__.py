"""Requests of web frameworks: what a client is told, and when a request is run again."""
