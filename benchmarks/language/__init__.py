"""Language models on the text at hand, by eight optimizers."""
