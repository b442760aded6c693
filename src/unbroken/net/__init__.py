"""Sockets, below every driver: liveness, last words, keepalive, watching, severing."""
