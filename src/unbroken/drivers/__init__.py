"""One short file per driver, and the URL that chooses among them."""
