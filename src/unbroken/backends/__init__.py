"""What each kind of server says, and what it means."""
