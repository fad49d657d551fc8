"""GRPO with OTCA's credit, all of it by hand: ``python -m reproduce.plugins.grpo_loop`` trains the embedded image model."""

import torch

from otca import credit
from otca.config import PolicyConfig
from otca.models.base import build_policy
from otca.prompts import load_prompts
from otca.rewards.base import build_rewards
from otca.sampling import generator, make_batch, sigmas_S, step


def iterate(policy, optimizer, rewards, prompts, key, group=8, steps=8, shift=3.0, level=0.7, clip=1e-3):
    """Sample ``group`` pictures of each prompt, score and credit them, take one optimizer step. Returns rewards (B, K)."""
    batch, sigma_S = make_batch(prompts, list(range(len(prompts))), group, key), sigmas_S(steps, shift)
    condition, noise_B = policy.encode([p.text for p in batch.prompts]), [generator(seed, "steps") for seed in batch.seed_B]

    def transition(t, x, **given):  # the next state and its log-density, by SDE; the last step by ODE
        velocity, kind = policy.velocity(x, sigma_S[t].float().expand(len(x)), condition), "flow_sde" if t < steps - 1 else "ode"
        return step(kind, x, velocity, sigma_S[t], sigma_S[t + 1], level, sigma_max=sigma_S[1], **given)[:2]

    states, log_probs = [policy.noise([generator(seed, "initial") for seed in batch.seed_B])], []
    with torch.no_grad():
        for t in range(steps):
            state, log_prob_B = transition(t, states[t], noise=policy.noise(noise_B))
            states, log_probs = [*states, state], [*log_probs, log_prob_B]
        media = policy.decode(states[-1])
    reward_BK = torch.stack([reward.score(media, batch.prompts) for reward in rewards], dim=1)
    advantage_TB = credit.otca_advantage_TB(reward_BK, batch.group_B, torch.stack(states))
    for t in range(steps - 1):
        ratio_B = (transition(t, states[t], prev=states[t + 1])[1] - log_probs[t]).exp()
        loss_B = torch.maximum(-advantage_TB[t] * ratio_B, -advantage_TB[t] * ratio_B.clamp(1 - clip, 1 + clip))
        (loss_B.mean() / (steps - 1)).backward()
    torch.nn.utils.clip_grad_norm_(policy.trainable_parameters(), 1.0)
    optimizer.step(), optimizer.zero_grad()
    return reward_BK


if __name__ == "__main__":
    policy, rewards, prompts = build_policy(PolicyConfig()), build_rewards(["alignment"]), load_prompts("embedded:image/train")
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=2e-4)
    for i in range(25):
        print(i, iterate(policy, optimizer, rewards, prompts[8 * i : 8 * i + 8], (0, i)).mean(0).tolist())
