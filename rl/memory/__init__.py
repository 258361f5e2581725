"""Where training state lives, and how much memory a run takes."""
