"""`mlic doctor`: checks of shards, labels and the machine before training."""
