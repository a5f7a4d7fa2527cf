"""Label files that are no plain tables: a module for each format."""
