"""Attention as drift-diffusion: operators, their limit, and how fast they get there."""
