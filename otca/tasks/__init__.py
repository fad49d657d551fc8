"""The small task that ships with the repo: scenes, their renderer, verifier, judge and checkpoints (nothing is downloaded)."""
