"""Files to batches: label files, shards, images and the loader. No Ray; PyTorch only where batches are made."""
