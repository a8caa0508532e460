"""The command: python -m landscape.sensitivity --ckpt FILE."""

from landscape.core.cli import main
from landscape.sensitivity import PROBE

if __name__ == "__main__":
    raise SystemExit(main(PROBE))
