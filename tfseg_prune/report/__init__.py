"""Shows what a run did: a table for the console and one HTML file."""
