"""The figures of the paper (arXiv 2508.12903): accuracy in per cent, by model and method.

Its answers were scored by a judge (Qwen2.5-32B-Instruct), greedily drawn, at most 1,500 new tokens. The last number of a row is
the average of the ten.
"""

BENCHMARK_ORDER = ("gsm8k", "math500", "aime24", "arc", "gpqa", "winogrande", "commonsenseqa", "drop", "mmlu", "xsum")

# rows that are a method here have its name; the others are the paper's own words
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "Qwen2.5-7B": {
        "vanilla": (88.8, 68.4, 6.7, 85.3, 25.6, 64.7, 62.8, 78.6, 46.0, 31.6, 55.9),
        "self-refine": (88.7, 68.4, 16.7, 85.3, 25.6, 64.1, 62.3, 78.6, 49.0, 36.0, 57.5),
        "self-refine-oracle": (89.6, 69.4, 6.7, 89.0, 27.7, 73.8, 67.5, 80.2, 63.0, 56.2, 62.3),
        "pasr-prompt": (79.0, 54.4, 6.7, 46.8, 22.5, 34.8, 30.3, 70.6, 34.0, 23.1, 40.2),
        "pasr-ift": (89.2, 70.8, 3.3, 84.6, 23.6, 62.4, 65.4, 77.3, 51.0, 42.0, 57.0),
        "pasr": (88.8, 73.6, 10.0, 86.6, 29.3, 57.0, 67.0, 79.6, 75.0, 49.9, 61.7),
        "w/o multi-answer": (75.7, 62.2, 10.0, 83.9, 28.9, 53.4, 65.9, 76.7, 71.0, 44.3, 57.2),
        "w/o comparison": (86.0, 62.2, 10.0, 82.9, 27.4, 65.3, 64.9, 78.6, 53.0, 31.9, 56.2),
    },
    "Qwen3-8B": {
        "vanilla": (91.3, 80.2, 13.3, 89.0, 25.0, 64.5, 66.3, 71.2, 72.0, 36.3, 60.9),
        "self-refine": (90.5, 73.0, 10.0, 91.3, 29.1, 76.8, 75.8, 80.8, 73.0, 50.2, 65.0),
        "self-refine-oracle": (94.8, 84.4, 23.3, 94.0, 43.7, 83.0, 83.5, 85.0, 85.0, 51.1, 72.8),
        "pasr-prompt": (60.3, 67.8, 10.0, 57.9, 29.4, 60.4, 74.3, 75.1, 52.0, 26.6, 51.4),
        "pasr-ift": (91.7, 74.6, 6.7, 73.6, 35.1, 68.7, 29.3, 73.5, 36.0, 36.3, 52.6),
        "pasr": (94.9, 81.4, 16.7, 92.3, 24.5, 80.0, 79.6, 85.3, 83.0, 53.0, 69.1),
    },
    "Qwen2.5-14B": {
        "vanilla": (92.9, 75.6, 20.0, 89.0, 38.4, 81.1, 66.4, 87.5, 57.0, 60.5, 66.8),
        "self-refine": (92.3, 75.2, 20.0, 89.0, 38.5, 80.2, 65.7, 86.9, 57.0, 57.2, 66.2),
        "pasr-prompt": (88.7, 71.6, 26.7, 78.9, 26.3, 71.0, 68.0, 88.5, 66.0, 17.7, 60.3),
        "pasr-ift": (75.0, 59.4, 23.3, 86.0, 38.4, 67.4, 69.0, 78.9, 68.0, 61.3, 62.7),
        "pasr": (93.6, 78.0, 30.0, 88.8, 45.1, 86.0, 78.3, 89.9, 74.0, 53.2, 71.7),
    },
}


def paper_model(name: str, model: str) -> str:
    """Which of the paper's models to compare with: the one that is named, or for "paper" the one that `model` is a variant of.

    Raises:
        ValueError: no such model, or none that `model` resembles.
    """
    if name in PAPER:
        return name
    found = [known for known in PAPER if known.casefold() in model.casefold()]
    if name != "paper" or not found:
        whose = f"{model!r} is none of the paper's models" if name == "paper" else f"the paper has no figures of {name!r}"
        raise ValueError(f"{whose}; say --compare with one of {', '.join(PAPER)}")
    return max(found, key=len)
