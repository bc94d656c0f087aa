"""Times LiteRT files; needs nothing but NumPy and a LiteRT runtime."""
