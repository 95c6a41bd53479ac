"""Settings that make a run of the inventory problem small."""

SMALL = [
    "trainer.num_updates=3",
    "trainer.progress=false",
    "env.batch_size=8",
    "algorithm.window=5",
    "policy.hidden=[8]",
    "critic.hidden=[8]",
    "env.evaluation.quick.num_steps=60",
    "env.evaluation.tests.long_run.batch_size=8",
    "env.evaluation.tests.long_run.num_steps=230",
    "env.evaluation.tests.protocol.batch_size=8",
]
