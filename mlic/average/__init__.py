"""`mlic average`: one model out of several trained ones."""
