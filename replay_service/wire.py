"""Bytes <-> messages; pure, no socket. `docs/wire.md` has the format.

A message is the msgpack array `[wire_version, kind, codec, crc32(body), body]`; `body` is msgpack too. An array is
`[dtype, shape, data]` with `data` one bin field, little-endian, C order. Nothing is ever unpickled, and every size
is checked before an array is made: arrays are views of the message's own bytes, so a claimed shape costs nothing.
"""

from __future__ import annotations

import math
import sys
import zlib
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from replay_service.errors import WireError
from replay_service.experience import WIRE_VERSION, FloatArray, Origin, Trajectory
from replay_service.policy_weights import PolicySpec, PolicyWeights

MAX_MESSAGE_BYTES: Final = 64 * 2**20
"""Longest message that is written or read."""

CODEC_NONE: Final = 0
"""The body is stored as it is; other codecs are refused until one exists."""

_KIND_TRAJECTORY: Final = "trajectory"
_KIND_WEIGHTS: Final = "policy_weights"
_DTYPE: Final = "<f4"
_MAX_DIMENSIONS: Final = 4
_MAX_LAYERS: Final = 64
_MAX_ITEMS: Final = 64
"""Longest list of any message: one entry a layer."""
_MAX_LISTS: Final = 512
"""Most lists in any message: four a layer and some. Nested lists of nothing would cost 65 times their own bytes."""
_SHOWN_LENGTH: Final = 40

if sys.byteorder != "little":  # pragma: no cover - no supported platform is big-endian
    raise ImportError("the wire format is little-endian and this machine is not")


def encode_trajectory(trajectory: Trajectory) -> bytes:
    """Encode a trajectory; `decode_trajectory` is the inverse.

    Raises:
        WireError: an array is not float32, or the message would exceed `MAX_MESSAGE_BYTES`.
    """
    origin = trajectory.origin
    body = [
        [origin.actor_id, origin.epoch, origin.sequence, origin.policy_version, origin.episode, origin.first_step],
        trajectory.terminated,
        trajectory.truncated,
        _array_to_wire(trajectory.observations),
        _array_to_wire(trajectory.actions),
        _array_to_wire(trajectory.rewards),
    ]
    return _seal(_KIND_TRAJECTORY, body)


def decode_trajectory(message: bytes) -> Trajectory:
    """Decode a trajectory. Its arrays are read-only views of `message`.

    Raises:
        WireError: anything at all is wrong with the bytes. Whether the arrays fit a run's spec is
            `Trajectory.problem`'s to say.
    """
    origin, terminated, truncated, observations, actions, rewards = _items(_open(message, _KIND_TRAJECTORY), 6, "body")
    fields = [_integer(value, "origin") for value in _items(origin, 6, "origin")]
    return Trajectory(
        observations=_array_from_wire(observations, "observations"),
        actions=_array_from_wire(actions, "actions"),
        rewards=_vector(_array_from_wire(rewards, "rewards"), "rewards"),
        terminated=_boolean(terminated, "terminated"),
        truncated=_boolean(truncated, "truncated"),
        origin=Origin(*fields),
    )


def encode_policy_weights(policy: PolicyWeights) -> bytes:
    """Encode one version of the policy; `decode_policy_weights` is the inverse.

    Raises:
        WireError: an array is not float32, or the message would exceed `MAX_MESSAGE_BYTES`.
    """
    spec = policy.spec
    body = [
        [spec.observation_dim, spec.action_dim, list(spec.hidden_sizes), spec.bounded_mean],
        [policy.version, policy.grad_steps, policy.env_steps, policy.published_unix_seconds],
        [_array_to_wire(weight) for weight in policy.weights],
        [_array_to_wire(bias) for bias in policy.biases],
        _array_to_wire(policy.log_std),
    ]
    return _seal(_KIND_WEIGHTS, body)


def decode_policy_weights(message: bytes) -> PolicyWeights:
    """Decode one version of the policy.

    Raises:
        WireError: the bytes are damaged, or the arrays do not fit the spec inside the message.
    """
    spec_fields, stamp, weights, biases, log_std = _items(_open(message, _KIND_WEIGHTS), 5, "body")
    observation_dim, action_dim, hidden_sizes, bounded_mean = _items(spec_fields, 4, "spec")
    if not isinstance(hidden_sizes, list) or len(hidden_sizes) >= _MAX_LAYERS:
        raise WireError(f"hidden_sizes: expected a list of fewer than {_MAX_LAYERS} sizes, got {type(hidden_sizes)}")
    spec = PolicySpec(
        observation_dim=_integer(observation_dim, "observation_dim"),
        action_dim=_integer(action_dim, "action_dim"),
        hidden_sizes=tuple(_integer(size, "hidden_sizes") for size in hidden_sizes),
        bounded_mean=_boolean(bounded_mean, "bounded_mean"),
    )
    version, grad_steps, env_steps, published = _items(stamp, 4, "stamp")
    if not isinstance(published, float) or not math.isfinite(published):
        raise WireError(f"published_unix_seconds: expected a finite float, got {_shown(published)}")
    layers = len(spec.layer_shapes)
    policy = PolicyWeights(
        spec=spec,
        version=_integer(version, "version"),
        grad_steps=_integer(grad_steps, "grad_steps"),
        env_steps=_integer(env_steps, "env_steps"),
        published_unix_seconds=published,
        weights=tuple(_array_from_wire(item, "weights") for item in _items(weights, layers, "weights")),
        biases=tuple(_array_from_wire(item, "biases") for item in _items(biases, layers, "biases")),
        log_std=_array_from_wire(log_std, "log_std"),
    )
    problem = policy.problem()
    if problem is not None:
        raise WireError(problem)
    return policy


def _seal(kind: str, body: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    message: bytes = msgpack.packb([WIRE_VERSION, kind, CODEC_NONE, zlib.crc32(packed), packed], use_bin_type=True)
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {len(message)}")
    return message


def _open(message: bytes, kind: str) -> Any:
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {len(message)}")
    version, got_kind, codec, checksum, body = _items(_unpack(message), 5, "message")
    if version != WIRE_VERSION:
        raise WireError(
            f"expected wire version {WIRE_VERSION}, got {_shown(version)}: sender and reader differ in version"
        )
    if got_kind != kind:
        raise WireError(f"expected a message of kind {kind!r}, got {_shown(got_kind)}")
    if codec != CODEC_NONE:
        raise WireError(f"expected codec {CODEC_NONE} (none), got {_shown(codec)}")
    if not isinstance(body, bytes):
        raise WireError(f"expected the body as bytes, got {type(body).__name__}")
    if zlib.crc32(body) != checksum:
        raise WireError("the checksum does not fit the body: the message was damaged on its way")
    return _unpack(body)


def _unpack(packed: bytes) -> Any:
    lists = 0

    def count(items: list[Any]) -> list[Any]:
        nonlocal lists
        lists += 1
        if lists > _MAX_LISTS:
            raise ValueError(f"more than {_MAX_LISTS} lists")
        return items

    try:
        return msgpack.unpackb(
            packed,
            list_hook=count,
            raw=False,
            strict_map_key=True,
            max_bin_len=MAX_MESSAGE_BYTES,
            max_array_len=_MAX_ITEMS,
            max_map_len=0,
            max_str_len=1024,
            max_ext_len=0,
        )
    except Exception as error:
        # msgpack raises a dozen unrelated types for hostile bytes (ValueError, RecursionError, UnicodeDecodeError...).
        raise WireError(f"not msgpack: {type(error).__name__}: {error}") from error


def _items(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        got = f"{len(value)} items" if isinstance(value, list) else type(value).__name__
        raise WireError(f"{name}: expected a list of {count} items, got {got}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:_SHOWN_LENGTH]  # a foreign value may be as long as the message, and this text goes to a log


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"{name}: expected an integer, got {type(value).__name__}")
    return value


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"{name}: expected a boolean, got {type(value).__name__}")
    return value


def _array_to_wire(array: FloatArray) -> list[Any]:
    if array.dtype != np.float32:
        raise WireError(f"expected a float32 array, got {array.dtype}: convert it before sending")
    return [_DTYPE, list(array.shape), array.tobytes()]


def _array_from_wire(value: Any, name: str) -> FloatArray:
    dtype, shape, data = _items(value, 3, name)
    if dtype != _DTYPE:
        raise WireError(f"{name}: expected dtype {_DTYPE!r}, got {_shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not isinstance(data, bytes):
        raise WireError(f"{name}: expected [dtype, shape of at most {_MAX_DIMENSIONS} dimensions, bytes]")
    dimensions = [_integer(size, f"{name}: shape") for size in shape]
    # NumPy refuses an overflowing shape even where a 0 empties the array, so zeros are left out of the second product.
    is_absurd = any(size < 0 for size in dimensions) or math.prod(size or 1 for size in dimensions) > MAX_MESSAGE_BYTES
    if is_absurd or math.prod(dimensions) * 4 != len(data):
        raise WireError(f"{name}: shape {dimensions} does not fit {len(data)} bytes of {_DTYPE}")
    array: npt.NDArray[np.float32] = np.frombuffer(data, dtype=np.float32)
    return array.reshape(dimensions)


def _vector(array: FloatArray, name: str) -> FloatArray:
    if array.ndim != 1:
        raise WireError(f"{name}: expected one dimension, got shape {array.shape}")
    return array
