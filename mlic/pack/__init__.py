"""`mlic pack`: images and label files to WebDataset shards."""
