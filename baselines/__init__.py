"""Baselines, one file a method; each defines ``METHOD``. They run through the engine of `otca` and import nothing else."""

import importlib
import pkgutil

from otca.errors import InputError, nearest
from otca.methods import METHODS, Method


def find_method(name: str) -> Method:
    """The method of this name: OTCA's own, or the ``METHOD`` of a file here. Unknown names get the nearest known one."""
    if name in METHODS:
        return METHODS[name]
    own = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in own:
        known = [*METHODS, *own]
        raise InputError(f"unknown method {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    return importlib.import_module(f"{__name__}.{name}").METHOD
