"""Django: its own backends for MySQL and PostgreSQL over a pool of ours, a middleware, system
checks.

The import paths that Django wants (``unbroken.django.mysql`` …) are in ``unbroken/django``.
"""
