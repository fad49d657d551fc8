"""Training of the embedded checkpoints, one file a model; `reproduce/pretrain_embedded.py` runs them in order."""
