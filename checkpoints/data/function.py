"""`package.module:function` and `path/to/file.py:function`: images from your own code."""

from __future__ import annotations

from dataclasses import replace

from checkpoints.data import arrays
from checkpoints.data.images import Images, Split
from checkpoints.imported import module_at


def load(split: Split, target: str) -> Images:
    """Load a split from the function named by `target`.

    The function is called as `function(split)` with `"train"` or `"test"`. It returns (x, y), as in
    an `npz:` file, or an `Images` of that split. It must return the same images on every call,
    because results are matched by a fingerprint of the data. Importing the module runs its code.

    Args:
        split: `train` or `test`.
        target: an importable module or the path of a `.py` file, a colon, the function's name.

    Raises:
        ValueError: the module cannot be imported, it has no such function, or the function
            returns something else. Exceptions of the function itself are passed on.
    """
    source, _, attribute = target.rpartition(":")
    try:
        module = module_at(source)
    except Exception as error:  # the module is the user's own and may raise anything
        raise ValueError(
            f"{target}: {source} cannot be imported ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Expected a module on Python's path, or a .py file."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(
            f"{target}: {source} has no function {attribute!r}. Expected {attribute}(split) that "
            "returns (x, y) or Images."
        )
    made = function(split)
    if isinstance(made, Images):
        if made.split != split:
            raise ValueError(f"{target} returned the split {made.split!r}; expected {split!r}.")
        return replace(made, name=target)
    if not isinstance(made, tuple) or len(made) != 2:
        found = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ValueError(f"{target} returned {found}; expected (x, y) or Images.")
    x, y = made
    return arrays.to_images(x, y, classes=None, name=target, split=split)
