"""Where the folders that stand beside the package in the tree are found once it is installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_NAMES = ("schedules", "tuning_logs")


def root(name: str) -> Path:
    """Return the folder `schedules` or `tuning_logs`: the shipped one, else the checkout's.

    A wheel carries them inside the package as `_schedules` and `_tuning_logs`, so that it claims no
    other name in site-packages; an editable install and a bare checkout use the tree's own.

    Raises:
        ValueError: `name` is neither of the two.
        FileNotFoundError: the installation holds neither form of the folder.
    """
    if name not in _NAMES:
        raise ValueError(f"name must be one of {', '.join(_NAMES)}, got {name!r}")
    shipped, checkout = _PACKAGE / f"_{name}", _PACKAGE.parent / name
    for folder in (shipped, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"dcn_tvm is incomplete: neither {shipped} nor {checkout} is a folder")
