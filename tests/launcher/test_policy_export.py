"""An exported policy acts as the evaluator's, in every form, and the example of the documents runs it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from actors.policy import NumpyPolicy
from launcher.policy_export import encode_policy
from replay_service.config import RunConfig
from replay_service.experience import FloatArray
from replay_service.policy_weights import PolicySpec, PolicyWeights

RTOL, ATOL = 1e-5, 1e-5
RUN = RunConfig(env="pen", run_id="night")


def make_policy(*, bounded: bool = True, hidden: tuple[int, ...] = (32, 16)) -> PolicyWeights:
    draw = np.random.default_rng(0)
    spec = PolicySpec(45, 24, hidden, bounded)
    return PolicyWeights(
        spec=spec,
        version=7,
        grad_steps=700,
        env_steps=1_400,
        published_unix_seconds=0.0,
        weights=tuple((0.2 * draw.standard_normal(shape)).astype(np.float32) for shape in spec.layer_shapes),
        biases=tuple(draw.standard_normal(shape[:1]).astype(np.float32) for shape in spec.layer_shapes),
        log_std=draw.standard_normal(24).astype(np.float32),
    )


def observations() -> FloatArray:
    return np.random.default_rng(1).standard_normal((9, 45), dtype=np.float32)


def act(arrays: dict[str, Any], facts: dict[str, str]) -> FloatArray:
    """The network of `launcher/policy_export.py`'s first lines, one observation at a time."""
    layers = sum(name.startswith("weight_") for name in arrays)
    rows = []
    for observation in observations():
        hidden = observation
        for index in range(layers):
            hidden = arrays[f"weight_{index}"] @ hidden + arrays[f"bias_{index}"]
            if index < layers - 1:
                hidden = np.maximum(hidden, 0.0)
        rows.append(np.tanh(hidden) if facts["mean_activation"] == "tanh" else hidden)
    return np.stack(rows)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("hidden", [(), (8,), (32, 16)])
def test_every_form_acts_as_the_evaluator_does(bounded: bool, hidden: tuple[int, ...], tmp_path: Path) -> None:
    policy = make_policy(bounded=bounded, hidden=hidden)
    expected = NumpyPolicy(policy).mean(observations())

    stored = np.load(io.BytesIO(encode_policy(policy, RUN, "npz")), allow_pickle=False)
    facts = json.loads(str(stored["metadata"]))
    np.testing.assert_allclose(act(dict(stored), facts), expected, rtol=RTOL, atol=ATOL)
    assert np.array_equal(stored["log_std"], policy.log_std)
    assert (facts["env"], facts["policy_version"], facts["env_steps"]) == ("pen", "7", "1400")

    tensors = safetensors.numpy.load(encode_policy(policy, RUN, "safetensors"))
    np.testing.assert_allclose(act(tensors, facts), expected, rtol=RTOL, atol=ATOL)

    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnxruntime package")
    session = onnxruntime.InferenceSession(encode_policy(policy, RUN, "onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["mean_action"], {"observation": observations()})
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
    assert session.get_modelmeta().custom_metadata_map == facts


def test_the_example_of_the_documents_runs_a_policy_without_this_project(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert not re.search(r"\b(replay_service|actors|learner|launcher)\b", example)
    (tmp_path / "policy.npz").write_bytes(encode_policy(make_policy(), RUN, "npz"))
    done = subprocess.run(
        [sys.executable, "-c", example, "policy.npz"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ of 200 steps at the goal", done.stdout)
