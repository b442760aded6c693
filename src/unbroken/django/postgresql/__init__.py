"""``ENGINE = "unbroken.django.postgresql"``."""
