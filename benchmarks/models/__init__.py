"""The networks that the benchmarks train, in Flax nnx."""
