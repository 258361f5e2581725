"""Everything that turns rewards into better weights.

At the top is the step, in the order in which it passes through the files; `train.py` shows it on one page:

config, records, session           the command line; the records that travel; everything a run needs before its first step
rollout, sampler, slots, draws     prompts -> y', y ~ pi -> rewards: the groups of a step
advantages, batch                  Eq. 2 and which samples are trained on; micro-batches
logprobs, loss, optim, metrics     log pi(y_t); Eq. 3; optimizers and schedules; what is reported
files, distributed                 the ground: whole files, and what the ranks tell each other

The other two ways to train, and what to do with the result:

sft, refinement_paths, supervised  PASR(+IFT)
export                             a run's model for other programs
demo                               the embedded task: its warm start, its evaluation, its result in words

The rooms, which the step never imports:

weights/                           where weights, gradients and optimizer live; how much memory they take
judging/                           who scores answers
run/                               what a run leaves behind, and how it survives
evaluation/                        benchmarks, methods, tables; how a model refines
report/                            the page about a run
"""
