"""Whole studies, each one function of a config."""
