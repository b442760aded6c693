"""For MIDDLEWARE: ``"unbroken.django.middleware.UnbrokenMiddleware"``, first of all."""

from unbroken.integrations.django.middleware import UnbrokenMiddleware

__all__ = ["UnbrokenMiddleware"]
