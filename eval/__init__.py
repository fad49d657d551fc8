"""Evaluation: generate, score, aggregate, draw. Imports `otca`, never a baseline."""
