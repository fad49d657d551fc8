"""SD3: drives any StableDiffusion3Pipeline, such as SD3.5 medium and large; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.config import PolicyConfig
from otca.errors import InputError
from otca.models.pipeline import Encoded, PipelinePolicy, decoded_images
from otca.models.texts import Parts


class Sd3Policy(PipelinePolicy):
    """A StableDiffusion3Pipeline as a policy; latents (B, C, height/8, width/8).

    Encoded prompts: CLIP and T5 features, one after the other, (B, 77 + L, D), and the CLIP models' pooled vectors (B, D).
    SD3.5 is made for classifier-free guidance: set ``policy.true_guidance`` (4.5 in Flow-GRPO's settings).
    """

    pipeline_class = "StableDiffusion3Pipeline"
    lora_targets = (  # attention projections of both streams, as Flow-GRPO's LoRAs of SD3.5 have them
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
    )

    def __init__(self, config: PolicyConfig, device: torch.device, pipeline=None, networks_on: torch.device | None = None):
        super().__init__(config, device, pipeline, networks_on)
        self._set_size(config.height, config.width)

    def _set_size(self, height: int, width: int) -> None:
        transformer, factor = self.pipeline.transformer.config, self.pipeline.vae_scale_factor
        longest = transformer.patch_size * transformer.pos_embed_max_size * factor
        if max(height, width) > longest:
            raise InputError(f"height × width is {height} × {width}; {self.config.path} makes {longest} pixels a side at most")
        self.height, self.width = height, width
        self.latent_shape = (transformer.in_channels, height // factor, width // factor)

    def _tokens(self) -> int:
        return self.latent_shape[1] * self.latent_shape[2] // self.pipeline.transformer.config.patch_size**2

    def _longest_text(self) -> int:
        return 256  # StableDiffusion3Pipeline's own default

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompt, _, pooled, _ = pipeline.encode_prompt(
            prompt=text,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return prompt[0], pooled[0]

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt."""
        sizes, length = self.pipeline.transformer.config, self.pipeline.tokenizer_max_length + self.max_sequence_length
        return (length, sizes.joint_attention_dim), (sizes.pooled_projection_dim,)

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal latents, row b from generator b (drawn on its device)."""
        return self._draw(self.latent_shape, generators).to(self.device)

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        prompt_BLD, pooled_BD = condition.parts
        return self.network(
            hidden_states=latents.to(self.dtype),
            timestep=sigma_B * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=prompt_BLD,
            pooled_projections=pooled_BD,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def decode(self, latents) -> torch.Tensor:
        """Images (B, 1, 3, H, W) in [0, 1], fp32."""
        return decoded_images(self.pipeline.vae, latents)

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, 1, H, W)."""
        return latents.unsqueeze(2)
