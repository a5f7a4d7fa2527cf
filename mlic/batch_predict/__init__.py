"""`mlic batch-predict`: predictions for images in any number, by one process or by workers of a cluster."""
