"""The sources of text: questions and reference answers, benchmarks, prompts, the embedded task."""
