"""``"unbroken.django"`` in INSTALLED_APPS: system checks also where no engine of ours is in use."""

from unbroken.integrations.django.apps import UnbrokenConfig

__all__ = ["UnbrokenConfig"]
