"""What the two grammars share: splits that are disjoint by spec, endless prompts drawn from them, specs of others refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np

from otca.errors import InputError
from otca.types import Prompt

SPLITS = ("train", "validation", "test")


def split_specs(specs_by_skill: dict[str, list[dict]], split: str, fewest: int = 1) -> dict[str, list[dict]]:
    """Specs by skill of ``train`` (about 70 %), ``validation`` (10 %) or ``test`` (20 %, at least ``fewest`` a skill)."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    out = {}
    for index, (skill, specs) in enumerate(specs_by_skill.items()):
        order = np.random.default_rng([2604, 19234, index]).permutation(len(specs))
        n_test, n_val = max(fewest, round(0.2 * len(specs))), max(1, round(0.1 * len(specs)))
        bounds = {"test": (0, n_test), "validation": (n_test, n_test + n_val), "train": (n_test + n_val, len(specs))}
        first, last = bounds[split]
        out[skill] = [specs[i] for i in sorted(order[first:last])]
    return out


def check_spec(prompt: Prompt, is_stated: Callable[[dict], bool], wanted: str) -> None:
    """Raise InputError unless the prompt has a spec and ``is_stated`` finds it sound, be it by failing on a key or a type."""
    try:
        sound = is_stated(prompt.spec)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        found = "no spec" if prompt.spec is None else f"the spec {json.dumps(prompt.spec)[:160]}"
        raise InputError(f"prompt {prompt.id!r} has {found}; needed is {wanted}")


def draw_prompts(
    specs_by_skill: dict[str, list[dict]], captions: Callable[[dict], list[str]], split: str, count: int, seed: int
) -> list[Prompt]:
    """``count`` prompts, the skills in turn, distinct as far as the split has distinct wordings.

    The list is a prefix of the longer lists with the same seed; identifiers are ``<split>-<seed>-<index>``.
    """
    pools = [
        _pool(specs, captions, np.random.default_rng([seed, index, 77])) for index, specs in enumerate(specs_by_skill.values())
    ]
    out = []
    for i in range(count):
        spec, text = next(pools[i % len(pools)])
        out.append(Prompt(id=f"{split}-{seed}-{i:05d}", text=text, spec=spec))
    return out


def _pool(specs: list[dict], captions, rng: np.random.Generator) -> Iterator[tuple[dict, str]]:
    """Endless (spec, wording) pairs: each pass visits every spec once, in a new order; wordings repeat only when used up."""
    wordings = [list(rng.permutation(captions(spec))) for spec in specs]
    for turn in itertools.count():
        for i in rng.permutation(len(specs)):
            yield specs[i], str(wordings[i][turn % len(wordings[i])])
