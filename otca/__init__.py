"""Objective-aware process credit for the RL post-training of image and video generators."""

__version__ = "0.1.0"
