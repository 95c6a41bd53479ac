"""Settings that make a run small: of any problem, and of inventory problems with their tests."""

TINY = [
    "trainer.num_updates=3",
    "trainer.progress=false",
    "collect.batch_size=8",
    "collect.unroll_length=5",
    "policy.hidden=[8]",
    "critic.hidden=[8]",
]
SMALL = [
    *TINY,
    "evaluation.validation.num_steps=60",
    "evaluation.validation.batch_size=8",
    "evaluation.tests.long_run.batch_size=8",
    "evaluation.tests.long_run.num_steps=230",
    "evaluation.tests.protocol.batch_size=8",
]
