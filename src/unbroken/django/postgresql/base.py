"""Where Django looks for a backend's ``DatabaseWrapper``."""

from unbroken.integrations.django.postgresql import DatabaseWrapper

__all__ = ["DatabaseWrapper"]
