"""``ENGINE = "unbroken.django.mysql"``."""
