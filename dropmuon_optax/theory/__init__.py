"""What the papers' theory says about a run."""
