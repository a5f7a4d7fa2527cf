"""`mlic export`: a model for another engine."""
