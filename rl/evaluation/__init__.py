"""Evaluation: the demo's held-out questions, benchmarks by the paper's methods, tables."""
