"""Every metric that a table may hold: how it is named, read and printed."""

from __future__ import annotations

from dataclasses import dataclass

from otca.tasks.scenes import SKILLS
from otca.tasks.video_scenes import SKILLS as VIDEO_SKILLS


@dataclass(frozen=True)
class Metric:
    """How a metric is read and printed."""

    label: str
    higher_is_better: bool | None = True  # None: neither direction is
    held_out: bool = True  # never trained on
    decimals: int = 3  # in md and tex


METRICS: dict[str, Metric] = {
    "alignment": Metric("Alignment", held_out=False),
    "quality": Metric("Quality", held_out=False),
    "aesthetic": Metric("Aesthetic", held_out=False),
    "vq": Metric("VQ", held_out=False),
    "mq": Metric("MQ", held_out=False),
    "ta": Metric("TA", held_out=False),
    "hpsv2": Metric("HPSv2.1", held_out=False, decimals=4),
    "clip": Metric("CLIP score (ViT-L/14)", held_out=False, decimals=4),
    "videoalign_vq": Metric("VideoAlign VQ", held_out=False, decimals=4),
    "videoalign_mq": Metric("VideoAlign MQ", held_out=False, decimals=4),
    "worst_trained": Metric("Worst trained reward", held_out=False),
    "hypervolume": Metric("Hypervolume", held_out=False),
    "accuracy": Metric("Accuracy"),
    **{f"accuracy/{skill}": Metric(skill.replace("_", " ").capitalize()) for skill in dict.fromkeys(SKILLS + VIDEO_SKILLS)},
    "direction_accuracy": Metric("Direction accuracy"),
    "speed_accuracy": Metric("Speed accuracy"),
    "clip_score": Metric("CLIP score"),
    "pickscore": Metric("PickScore", decimals=2),
    "image_reward": Metric("ImageReward", decimals=4),
    "aesthetic_v2": Metric("Aesthetic v2", decimals=4),
    "videoalign_ta": Metric("VideoAlign TA", decimals=4),
    "kernel_distance": Metric("Kernel distance", higher_is_better=False, decimals=4),
    "frechet_distance": Metric("Fréchet distance", higher_is_better=False),
    "diversity": Metric("Diversity"),
    "hacking_gap": Metric("Hacking gap", higher_is_better=False),
    "samples_to_target": Metric("Samples to target", higher_is_better=False, decimals=0),
    "evaluations_to_target": Metric("Evaluations to target", higher_is_better=False, decimals=0),
    "seconds_to_target": Metric("Seconds to target", higher_is_better=False, decimals=0),
    "reached_target": Metric("Runs that reach it", decimals=2),
    "dynamic_degree_dis": Metric("Dynamic degree (DIS)"),
    "motion_smoothness_dis": Metric("Motion smoothness (DIS)", decimals=4),
    "top_flow_dis": Metric("Top-5 % flow (DIS), px a frame", higher_is_better=None),
    "temporal_flickering": Metric("Temporal flickering", decimals=4),
    "warping_error_dis": Metric("Warping error (DIS)", higher_is_better=False, decimals=5),
    "frame_consistency_embedded": Metric("Frame consistency (embedded)", decimals=4),
}
"""Every metric a table may hold, in column order. A new metric needs one line here."""
