"""The command: python -m landscape.hessian --ckpt FILE."""

from landscape.core.cli import main
from landscape.hessian import PROBE

if __name__ == "__main__":
    raise SystemExit(main(PROBE))
