"""How samples are drawn; `rl.sampler.Sampler` is the way in."""
