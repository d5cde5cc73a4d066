"""`launcher export`: a policy version in a form that other programs run, without this project.

All three forms hold float32 weights of the same network:

    h_0 = observation;  h_{i+1} = relu(h_i W_i^T + b_i);  mean action = tanh(h_n W_n^T + b_n)

npz and safetensors: arrays `weight_0`, `bias_0`, ... in the order of the layers, `log_std`, and whether the mean passes
a tanh. onnx: the network itself, `observation` (batch, O) -> `mean_action` (batch, A).
"""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from typing import Literal

import numpy as np
import safetensors.numpy

from replay_service.config import RunConfig
from replay_service.errors import ConfigError
from replay_service.experience import FloatArray
from replay_service.policy_weights import PolicyWeights

Format = Literal["onnx", "safetensors", "npz"]

_ONNX_OPSET = 17
_ONNX_IR_VERSION = 8


def encode_policy(policy: PolicyWeights, run: RunConfig, form: Format) -> bytes:
    """A policy as the bytes of a file.

    Args:
        policy: any version.
        run: where it comes from; its name, environment and the policy's counters go into the file.
        form: which of the three.

    Raises:
        ConfigError: ONNX is asked for and its package is missing.
    """
    facts = {
        "env": run.env,
        "run_id": run.run_id,
        "policy_version": str(policy.version),
        "grad_steps": str(policy.grad_steps),
        "env_steps": str(policy.env_steps),
        "mean_activation": "tanh" if policy.spec.bounded_mean else "none",
        "action_low": json.dumps(run.environment.action_low or [-1.0] * policy.spec.action_dim),
        "action_high": json.dumps(run.environment.action_high or [1.0] * policy.spec.action_dim),
    }
    if form == "safetensors":
        return safetensors.numpy.save(_arrays(policy), metadata=facts)
    if form == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, metadata=np.asarray(json.dumps(facts)), **_arrays(policy))
        return buffer.getvalue()
    return _onnx(policy, facts)


def _arrays(policy: PolicyWeights) -> dict[str, FloatArray]:
    arrays = {"log_std": np.ascontiguousarray(policy.log_std)}
    for index, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        arrays[f"weight_{index}"], arrays[f"bias_{index}"] = np.ascontiguousarray(weight), np.ascontiguousarray(bias)
    return arrays


def _onnx(policy: PolicyWeights, facts: dict[str, str]) -> bytes:
    if find_spec("onnx") is None:
        raise ConfigError("--format onnx needs the package onnx: pip install -e '.[onnx]'")
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, weights = [], []
    name, last = "observation", len(policy.weights) - 1
    for index, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        weights += [numpy_helper.from_array(weight, f"weight_{index}"), numpy_helper.from_array(bias, f"bias_{index}")]
        linear = f"linear_{index}"
        nodes.append(helper.make_node("Gemm", [name, f"weight_{index}", f"bias_{index}"], [linear], transB=1))
        activation = "Relu" if index < last else "Tanh" if policy.spec.bounded_mean else "Identity"
        name = "mean_action" if index == last else f"hidden_{index}"
        nodes.append(helper.make_node(activation, [linear], [name]))
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", policy.spec.observation_dim])],
        [helper.make_tensor_value_info("mean_action", TensorProto.FLOAT, ["batch", policy.spec.action_dim])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _ONNX_OPSET)], ir_version=_ONNX_IR_VERSION,
        producer_name="awac-online",
    )  # fmt: skip
    helper.set_model_props(model, facts)
    checker.check_model(model)
    encoded: bytes = model.SerializeToString()
    return encoded
