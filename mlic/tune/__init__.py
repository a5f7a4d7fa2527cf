"""`mlic tune`: a search over settings, on Ray Tune."""
