"""Label files as text, rows and objects, whatever they say: encodings, separators, workbooks, long JSON."""
