"""`mlic threshold`: decision thresholds fitted again, without training."""
