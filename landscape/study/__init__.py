"""A study: every probe over every network of it, resumable."""
