"""The errors of each kind of server, and their meaning."""
