"""Run folders on disk: locks, attempts, atomic files, provenance and progress."""
