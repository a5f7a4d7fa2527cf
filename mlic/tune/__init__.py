"""What a search does next and what it has found: plain rules, without Ray, processes or files."""
