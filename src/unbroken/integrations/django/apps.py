"""The app, for its system checks."""

from __future__ import annotations

from django.apps import AppConfig

from unbroken.integrations.django import checks


class UnbrokenConfig(AppConfig):  # type: ignore[misc] # Django has no types
    """Registers the system checks."""

    name = "unbroken.django"
    label = "unbroken"
    verbose_name = "unbroken"

    def ready(self) -> None:
        """Register the checks once Django is set up."""
        checks.register()
