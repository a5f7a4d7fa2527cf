"""Files to batches: label files, splits, shards, images and the loader. No Ray; PyTorch only where batches are made."""
