"""Everything that turns rewards into better weights. In the order in which a step passes through:

config, setup          the command line; everything a run needs before its first step
rollout                prompts -> sampler -> rewards: the groups of a step
  sampler, sampling/     generation from a KV cache
  judges, judging        the scorer of --judge; local_judge is the one in this process, preflight tries it out
  baselines              r̄ under --plain-policy reference
advantages, batch      Eq. 2; who is trained on, in which micro-batch
logprobs, loss         log pi(y_t); Eq. 3
update, optim          optimizer steps
weight_sync            the new weights, for the sampler
records                what travels between these

distributed, sharding, memory/                  several processes; where weights and optimizer live
checkpoint, resume, safe_state, disk, signals   stopping and going on
journal, metrics, clock, run_folder, wandb_mirror, report/   what a run writes down, and the page made of it
demo, sft, ift, refinement_paths                the embedded task's warm start; PASR(+IFT)
evaluation/, behaviour/                         benchmarks, methods, tables; how a model refines
user_errors                                     mistakes of the user in one line
"""
