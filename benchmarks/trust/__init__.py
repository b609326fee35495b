"""Interrupted, damaged, misused, on many hosts: what was tried, and what was lost."""
