"""Trained networks, and the real images on which they are probed."""
