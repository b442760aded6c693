"""Database connections that do not break."""
