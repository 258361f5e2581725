"""Text and numbers in, numbers out: Eq. 4-7. No torch."""
