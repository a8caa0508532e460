"""The command: python -m landscape.terms --ckpt FILE."""

from landscape.core.cli import main
from landscape.terms import PROBE

if __name__ == "__main__":
    raise SystemExit(main(PROBE))
