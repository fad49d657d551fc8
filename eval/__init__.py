"""Evaluation: generate media, measure them, and turn rows into statistics, tables and plots."""
