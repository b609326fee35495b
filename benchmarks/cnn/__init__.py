"""The CNN trained by five optimizers, and what their steps cost."""
