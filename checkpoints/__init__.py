"""Trained networks, and the real images on which they are probed."""

from checkpoints import interrupts

interrupts.quiet_while_importing()
