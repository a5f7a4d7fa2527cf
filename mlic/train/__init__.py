"""`mlic train`: one model, fitted by one process or by all workers of a cluster."""
