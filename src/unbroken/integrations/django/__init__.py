"""Django: its own backends for MySQL and PostgreSQL on an unbroken pool, a middleware, and system
checks.

The import paths that Django needs (``unbroken.django.mysql`` …) are in ``unbroken/django``.
"""
