"""One public function per stage: `verb(VerbConfig) -> VerbReport`."""
