"""Framework integrations, built on the lower layers through their public names."""
