"""Everything that turns rewards into better weights."""
