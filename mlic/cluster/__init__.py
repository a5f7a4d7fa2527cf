"""Where commands run: Ray and SLURM."""
