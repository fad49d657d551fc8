"""OTCA's credit in Flow-GRPO's own loop; written against github.com/yifan123/flow_grpo at ac4c86e (scripts/train_sd3.py).

There ``advantages = stat_tracker.update(prompts, gathered_rewards["avg"])`` becomes

    names = list(config.reward_fn)
    advantages = otca_advantages(samples, prompts, gathered_rewards, names, num_train_timesteps, accelerator.gather)

and nothing else changes: step j multiplies its ratio by ``samples["advantages"][:, j]``, held within ± adv_clip_max.
"""

import numpy as np
import torch

from otca import credit


def otca_advantages(samples, prompts, rewards, names, trained_steps, gather=lambda own: own, rho=0.5) -> np.ndarray:
    """Advantage of each sample of all processes at each trained step: (N, trained_steps), in the order of ``gather``.

    samples: this process's dict, with "latents" and "next_latents" (B, steps, …), before and after each step;
    prompts: N texts, equal within a group; rewards: name → (N,) array; names: those that are objectives (not "avg").
    """
    latents, next_latents = samples["latents"], samples["next_latents"]
    latents_SB = torch.cat([latents, next_latents[:, -1:]], dim=1).transpose(0, 1)
    trained_T = torch.arange(latents.shape[1], device=latents.device) < trained_steps
    weight_BT = credit.tcd_weights_TB(latents_SB, trained_T=trained_T).T.contiguous()
    weight_TN = gather(weight_BT).cpu().T  # how far each step of a sample went
    reward_NK = torch.stack([torch.as_tensor(rewards[name]).float() for name in names], dim=1)
    group_N = torch.as_tensor(np.unique(prompts, return_inverse=True)[1])
    advantage_NK = credit.group_zscore(reward_NK, group_N)
    credit_TNK = credit.otca_TBK(advantage_NK, weight_TN, rho)
    return credit.fuse_TB(credit_TNK, advantage_NK)[:trained_steps].T.numpy()
