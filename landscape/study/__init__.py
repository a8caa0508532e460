"""A study: all probes on all of its networks, resumable."""
