"""What the oracle costs: an update of Muon here, against Optax's."""
