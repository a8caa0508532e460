"""Trained checkpoints and real images that ship with the project."""
