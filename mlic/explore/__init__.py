"""`mlic explore`: counts and figures of a data set."""
