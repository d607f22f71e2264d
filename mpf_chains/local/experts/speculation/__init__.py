"""Speculative debiased decoding: the small models draft, one pass of the base verifies."""
