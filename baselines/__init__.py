"""Baselines, one file a method; each defines ``METHOD``. They run through the engine of `otca` and import nothing else."""

import difflib
import importlib
import pkgutil

from otca.errors import InputError
from otca.methods import METHODS, Method


def find_method(name: str) -> Method:
    """The method of this name: OTCA's own, or the ``METHOD`` of a file here. Unknown names get the nearest known one."""
    if name in METHODS:
        return METHODS[name]
    own = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in own:
        known = [*METHODS, *own]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown method {name!r}{hint} (known: {', '.join(known)})")
    return importlib.import_module(f"{__name__}.{name}").METHOD
