"""`mlic evaluate`: metrics of a predictions file, beside baselines and intervals."""
