"""`mlic reproduce`: a reference system, its reported numbers beside measured ones."""
