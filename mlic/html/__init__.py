"""What all HTML pages share: their frame, their style and their figures."""
