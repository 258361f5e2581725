"""Where text comes from: questions and reference answers, prompts, the embedded task."""
