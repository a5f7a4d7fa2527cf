"""`mlic demo`: the whole pipeline on a generated corpus."""
