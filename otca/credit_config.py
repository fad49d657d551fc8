"""Settings of the credit rules, typed and refused as those of a run are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from otca.bounds import at_least, positive, validate_fields
from otca.errors import InputError


@dataclass(frozen=True)
class CreditConfig:
    """Settings of the credit rules; a method reads what it needs."""

    rho: float = 0.5
    """MOCA: share of uniform weights mixed into the min-norm weights [ours]."""
    tcd_epsilon: float = 1e-3
    """TCD: floor of a step's progress [ours]."""
    tcd_normalise: Literal["mean", "sum"] = "mean"
    """TCD: weights of a sample average 1 over the trained steps [ours], or sum to 1."""
    tcd_latent: Literal["x_t", "x0_hat"] = "x_t"
    """TCD: measure progress on the states [reader], or on the clean predictions (as CoCA)."""
    tcd_control: Literal["none", "permuted", "averaged"] = "none"
    """TCD: what its weights know. "permuted" shuffles each sample's over its steps, "averaged" makes them a mere schedule."""
    advantage_epsilon: float = 1e-4
    """Added to a group's standard deviation."""
    process_decay: float = 0.3
    """Process credit: λ of the generalised increments; 0 credits a step with its own, 1 with all that follow [ours]."""
    process_shrinkage: bool = True
    """Process credit: shrink each state's value to what it foretells of the final reward, learned from the other groups."""
    process_completion: int = 3
    """Process credit: ODE steps from a state to what is scored; 1 is the clean prediction, free; 0 all that are left."""
    process_continuations: int = 0
    """Process credit: value a state by the mean over so many stochastic continuations instead, a costly reference; 0 is off."""
    process_states: int = 0
    """Process credit: how many states are scored; values in between are interpolated. 0 is all."""
    process_spread: Literal["even", "early"] = "even"
    """Process credit: the scored states are evenly spread from the initial noise on, or ("early") the first ones after it; the
    initial noise is then worth what its group ended with on average."""
    process_scale: Literal["run", "step"] = "run"
    """Process credit: advantages have RMS 1 over all trained steps, or at each step, so that late steps are trained as much."""
    sampled_steps: int = 0
    """Train only so many steps of each sample, drawn by the size of their credit and weighted to be unbiased; 0 trains all."""
    match_rms: bool = False
    """Rescale the advantage to the RMS of static weighting, so that methods differ in direction only."""

    def __post_init__(self):
        validate_fields(self, "credit.")
        if not 0 <= self.rho <= 1:
            raise InputError(f"credit.rho is {self.rho}; it must lie in [0, 1]")
        if not 0 <= self.process_decay <= 1:
            raise InputError(f"credit.process_decay is {self.process_decay}; it must lie in [0, 1]")
        for name in ("process_completion", "process_continuations", "process_states", "sampled_steps"):
            at_least(f"credit.{name}", getattr(self, name), 0)
        positive("credit.tcd_epsilon", self.tcd_epsilon)
        positive("credit.advantage_epsilon", self.advantage_epsilon)
