"""A whole RL step (generation, rule scoring, update) against TRL's GRPOTrainer: same tiny model, questions and reward.

    OMP_NUM_THREADS=1 python benchmarks/step.py

Both draw 8 completions of each of 4 prompts at temperature 1, until the end token or 256 tokens, and make one AdamW step on the
global token mean without KL. One step of ours follows each step of TRL's in one process; times are process CPU time on one
thread. TRL is an extra (`pip install trl`); without it ours is timed alone.
"""

import argparse
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import hugging_face_model
from benchmarks.workload import LONGEST, SAMPLES, Case, cpu_time, make_case
from rewards.format import format_reward
from rl.advantages import select_samples
from rl.config import Config
from rl.records import Group, Request, Sample
from rl.sampler import Sampler
from rl.weights.policy import TrainState, make_optimizer
from train import update_policy

END, LR = 1, 1e-6
CONFIG = Config(beta=0.0, lr=LR, warmup_steps=0, max_new_tokens=LONGEST, group_size=SAMPLES, seed=0)


def make_tokenizer(vocab: int):
    """One word a token: `w0 w1 ...`; word 0 is padding, word 1 the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1")


def reward(text: str) -> float:
    """Eq. 4 plus a rule that tells random texts apart: the share of their words that end in an even digit."""
    words = text.split()
    return format_reward(text) + sum(word[-1] in "02468" for word in words) / max(1, len(words))


class Ours:
    """One step from prompts to better weights; remembers how much it generated."""

    def __init__(self, case: Case, tokenizer) -> None:
        self.tokenizer, self.prompts, self.step, self.tokens = tokenizer, case.prompts, 0, 0
        rows = len(case.prompts) * SAMPLES
        self.sampler = Sampler(case.model, stop_ids=[END], max_slots=rows, max_len=2 * LONGEST)
        self.state = TrainState(case.model, make_optimizer(case.model, CONFIG))

    def __call__(self) -> None:
        requests = [Request(p, SAMPLES, LONGEST, 1.0, (self.step, i)) for i, p in enumerate(self.prompts)]
        groups = [Group(str(i), "", "") for i in range(len(requests))]
        for group, request, completions in zip(groups, requests, self.sampler.generate(requests), strict=True):
            for completion in completions:
                text = self.tokenizer.decode(completion.text_ids)
                group.refine_samples.append(Sample(request.prompt_ids, completion, text, "refine", reward=reward(text)))
                self.tokens += len(completion.ids)
        samples = select_samples(groups, CONFIG)
        assert len(samples) == len(requests) * SAMPLES, "the rewards of a group are equal"
        update_policy(self.state, samples, CONFIG, self.step)
        self.step += 1


def against_trl(case: Case, tokenizer, ours: Ours, steps: int) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Interleave(TrainerCallback):
        """Times each step of TRL's, and one of ours after it."""

        def __init__(self) -> None:
            self.seconds = []

        def on_step_begin(self, *_, **__) -> None:
            self.begin = time.process_time()

        def on_step_end(self, *_, **__) -> None:
            theirs = time.process_time() - self.begin
            self.seconds.append((cpu_time(ours), theirs))

    lengths = []

    def rewarded(completions, completion_ids, **_) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [reward(text) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=SAMPLES,
            gradient_accumulation_steps=len(case.prompts),
            num_generations=SAMPLES,
            max_completion_length=LONGEST,
            temperature=1.0,
            beta=0.0,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_steps=steps + 1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        rows = Dataset.from_list([{"prompt": tokenizer.decode(prompt)} for prompt in case.prompts])
        watch = Interleave()
        model = hugging_face_model(case)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, 0
        GRPOTrainer(model, rewarded, settings, rows, processing_class=tokenizer, callbacks=[watch]).train()
    pairs = watch.seconds[1:]  # the first step of each warms up
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"ours {mine:.2f} s a step, mean completion {ours.tokens / ours.step / len(case.limits):.0f} tokens")
    print(f"TRL  {theirs:.2f} s a step, mean completion {statistics.mean(lengths):.0f} tokens")
    print(f"ours is {statistics.median(ratios):.2f}x as fast ({ratios[0]:.2f} - {ratios[-1]:.2f}, {len(pairs)} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="steps of each that count (default: 3)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    case = make_case("tiny-4")
    for prompt in case.prompts:
        prompt[:] = [max(2, token) for token in prompt]  # neither padding nor end
    tokenizer = make_tokenizer(case.model.config.vocab_size)
    ours = Ours(make_case("tiny-4"), tokenizer)
    ours.prompts = case.prompts
    if find_spec("trl") is None or find_spec("datasets") is None:
        print("TRL left out: trl and datasets are not installed")
        ours()
        seconds = [cpu_time(ours) for _ in range(given.steps)]
        print(f"ours {statistics.median(seconds):.2f} s a step")
        return
    against_trl(case, tokenizer, ours, given.steps)


if __name__ == "__main__":
    main()
