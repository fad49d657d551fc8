"""OTCA's credit in Flow-Factory's trainer hooks; written against github.com/X-GenGroup/Flow-Factory at a0b2bc5.

``class OtcaTrainer(Otca, GRPOTrainer)``, decorated with ``@register_trainer("otca")``; then ``trainer_type: otca`` in the YAML.
"""

import functools
import inspect

import torch

from otca import credit


class Otca:
    """MOCA in the advantage of a sample (B,), TCD in the gradient of each of its steps; GRPOTrainer does the rest."""

    def __init__(self, **settings):
        super().__init__(**settings)
        inference, forward = self.adapter.inference, self.adapter.forward
        known = inspect.signature(forward).parameters

        @functools.wraps(inference)
        def keeping(**given):  # the final state too, toward which progress is measured
            return inference(**given | {"trajectory_indices": given["trajectory_indices"] and "all"})

        def weighted(**given):  # the log-probability keeps its value; its gradient is scaled by the step's weight
            out = forward(**{name: given[name] for name in given if name in known})
            if "step_weight" in given and out.log_prob is not None:
                step, value_B = int((given["timesteps"][0] == given["t"][0]).nonzero()[0]), out.log_prob.detach()
                out.log_prob = value_B + given["step_weight"][:, step] * (out.log_prob - value_B)
            return out

        self.adapter.inference, self.adapter.forward = keeping, weighted

    def compute_advantages(self, samples, rewards, store_to_samples=True, aggregation_func=None):
        """Step weights (T,) and the advantage of each sample into its ``extra_kwargs``."""
        for sample in samples:
            trained_T = torch.isin(torch.arange(len(sample.all_latents) - 1), self.adapter.scheduler.train_timesteps.cpu())
            weight_TB = credit.tcd_weights_TB(sample.all_latents.unsqueeze(1), trained_T=trained_T)
            sample.extra_kwargs["step_weight"] = weight_TB[:, 0].to(self.accelerator.device)
        return super().compute_advantages(samples, rewards, store_to_samples, moca)


def moca(processor, samples, rewards, store):
    """What Flow-Factory takes as an advantage's aggregation: the sum of objectives, weighted by MOCA."""
    reward_by_name, group_B = processor.collect_group_rewards(samples, rewards)
    reward_BK = torch.stack([torch.as_tensor(value).float() for value in reward_by_name.values()], dim=1)
    advantage_BK = credit.group_zscore(reward_BK, torch.as_tensor(group_B))
    advantage_B = processor._to_local((credit.moca_weights_BK(advantage_BK) * advantage_BK).sum(1).numpy())
    for sample, advantage in zip(samples, advantage_B) if store else ():
        sample.extra_kwargs["advantage"] = advantage
    return advantage_B
