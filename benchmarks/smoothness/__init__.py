"""Gluon's (L⁰, L¹) smoothness, measured along a run."""
