"""The command: python -m landscape.interpolate --ckpt FILE."""

from landscape.core.cli import main
from landscape.interpolate import PROBE

if __name__ == "__main__":
    raise SystemExit(main(PROBE))
