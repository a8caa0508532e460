"""The command: python -m landscape.attention --ckpt FILE."""

from landscape.attention import PROBE
from landscape.core.cli import main

if __name__ == "__main__":
    raise SystemExit(main(PROBE))
