"""Batches: the order of an epoch, readers of samples, streamed shards and samples that cannot be decoded."""
