"""Bodies for frameworks, built on the floors below through their public names."""
