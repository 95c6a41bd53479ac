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
    "evaluation.validation.batch_size=8",
    "evaluation.validation.num_steps=12",
    "evaluation.validation.skip=4",
    "evaluation.tests.long_run.batch_size=8",
    "evaluation.tests.long_run.num_steps=30",
    "evaluation.tests.long_run.skip=10",
    "evaluation.tests.protocol.batch_size=8",
    "evaluation.tests.protocol.num_steps=20",
]
