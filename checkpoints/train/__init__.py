"""Training: python -m checkpoints.train --model fmmnet20 --data fashion-mnist."""
