"""Trained networks and the real images they are probed on: what is studied."""
