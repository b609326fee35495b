"""What all benchmarks share: data, training, clocks, records, reports."""
