"""Operations on a connection's socket by its descriptor, independent of the driver.

The driver owns each descriptor. No function of this package closes a descriptor that it was given.
"""
