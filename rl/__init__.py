"""Everything that turns rewards into better weights. First what a step passes through, in that order:

config, config_checks, setup       the command line; everything a run needs before its first step
rollout, records                   prompts -> sampler -> rewards: the groups of a step
sampler, sampling/                 generation from a KV cache
judges, judging, local_judge       the scorer of --judge; asked as answers end; the one in this process
preflight, baselines               is the judge able to judge; r̄ under --plain-policy reference
advantages, selection, batch       Eq. 2; who is trained on; in which micro-batch
logprobs, loss                     log pi(y_t); Eq. 3
update, optim                      optimizer steps
weight_sync                        the new weights, for the sampler

distributed, sharding, memory/     several processes; where weights and optimizer live
checkpoint, resume                 stopping and going on
disk, signals                      is there room; a signal to stop
journal, metrics, clock            what a step leaves behind
run_folder, wandb_mirror, report/  where it is written, and the page made of it
demo, supervised                   the embedded task's warm start
sft, refinement_paths              PASR(+IFT)
evaluation/, behaviour/            benchmarks, methods, tables; how a model refines
terminal, user_errors              what a person reads and types
"""
