"""The benchmark of speed: its yardstick does what the library does, and the tool runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.__main__ import cases, main, parse  # noqa: E402
from benchmarks.speed.cases import MEASURES, VARIANTS, Case, Workbench  # noqa: E402
from benchmarks.speed.matmul import MatmulReplay  # noqa: E402

SMALL = Case(items=3, batch=4, width=8, horizon=6)


def bench():
    """A workbench in double precision, away from the parameters that start at zero."""
    torch.manual_seed(0)
    found = Workbench(SMALL, torch.device("cpu"), torch.float64)
    own = found.parameters()
    with torch.no_grad():
        for parameter in own:
            parameter += 0.1 * torch.randn_like(parameter)
    found.copy_parameters()
    return found, own


@pytest.mark.parametrize("variant", VARIANTS[1:3])
def test_the_hand_written_rollout_is_the_librarys(variant):
    found, own = bench()
    torch.manual_seed(1)
    hand = found.hand.rollout()
    torch.manual_seed(1)
    library = found.rollout(variant)
    assert torch.equal(hand.options, library["action", "discrete"])
    pairs = [
        (hand.quantities, library["action", "continuous"]),
        (hand.rewards, library["next", "reward"].squeeze(-1)),
        (hand.log_probs, library["action_log_prob"]),
        (hand.option_log_probs, library["discrete_log_prob"]),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine, other)
    hand.rewards.mean().backward()
    library["next", "reward"].mean().backward()
    reached = 0
    for mine, other in zip(found.hand.nets.parameters(), own, strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad)
            reached += bool(other.grad.any())
    assert reached >= 5


def test_the_hand_written_update_is_the_librarys():
    found, own = bench()
    for seed in range(2):
        torch.manual_seed(seed)
        library = found.iterate(VARIANTS[1])
        torch.manual_seed(seed)
        hand = found.hand.iterate()
        assert {"loss_pathwise", "loss_objective", "loss_critic", "loss_entropy"} <= {*hand}
        for key, value in hand.items():
            # TorchRL's estimator holds its discount in single precision.
            assert value == pytest.approx(library[key], rel=1e-5, abs=1e-9), key
        for mine, other in zip(found.hand.nets.parameters(), own, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_products_of_a_linear_layer_are_counted():
    layer, data = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    replay = MatmulReplay(lambda: layer(data).sum().backward())
    assert len(replay) == 3  # the output, and the gradients of weights and input
    assert replay.flops() == 3 * 2 * 7 * 3 * 5
    replay()


def test_the_tool_prints_a_table_and_writes_every_row(tmp_path, capsys):
    out, threads = tmp_path / "speed.json", torch.get_num_threads()
    sizes = ["--batch", "4", "--width", "8", "--horizon", "5", "--items", "1"]
    assert len(cases(parse([*sizes, "2"]))) == 2
    main([*sizes, "--rounds", "1", "--out", str(out)])
    torch.set_num_threads(threads)
    table = capsys.readouterr().out
    assert all(name in table for name in (*MEASURES, *VARIANTS))
    found = json.loads(out.read_text())
    assert found["machine"]["device_type"] == "cpu"
    assert len(found["rows"]) == len(MEASURES) * len(VARIANTS)
    for row in found["rows"]:
        assert row["rounds"] == 1
        assert row["over_base"]["lower"] <= row["over_base"]["median"] <= row["over_base"]["upper"]


IN_JAX = Case(items=2, batch=1, width=8, horizon=1)
LQR = Case(items=4, batch=1, width=8, horizon=1, problem="switched_lqr")


@pytest.mark.parametrize("case", [IN_JAX, LQR], ids=lambda case: case.problem)
def test_jax_computes_the_numbers_of_pytorch(case):
    """The same rollout, gradient and update."""
    pytest.importorskip("jax")
    from benchmarks.speed.bridge import check

    assert check(case, torch.float64).keys() == {*case.measures}


def test_a_wrong_discount_in_jax_is_noticed():
    pytest.importorskip("jax")
    from benchmarks.speed.bridge import check

    with pytest.raises(RuntimeError, match="backward"):
        check(LQR, torch.float64, discount=0.98)


@pytest.mark.parametrize(
    ("words", "told"), [(["--clock", "cpu"], "--threads 1"), (["--jax"], "one core")]
)
def test_what_is_measured_on_one_thread_is_refused_elsewhere(words, told, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--threads", "2"])
    assert told in capsys.readouterr().err
