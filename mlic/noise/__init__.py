"""`mlic noise`: labels that are probably wrong."""
