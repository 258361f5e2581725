"""Behaviour analyses: whether, when and how a model refines."""
