"""Where Django looks for a backend's ``DatabaseWrapper``."""

from unbroken.integrations.django.mysql import DatabaseWrapper

__all__ = ["DatabaseWrapper"]
