"""Where it runs: Ray, SLURM, and the folders that runs leave on disk."""
