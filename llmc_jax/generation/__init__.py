"""Texts from a model."""
