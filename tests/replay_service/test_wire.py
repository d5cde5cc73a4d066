from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replay_service import wire
from replay_service.errors import WireError
from replay_service.experience import WIRE_VERSION, FloatArray, Origin, Trajectory
from replay_service.policy_weights import PolicySpec, PolicyWeights

Decoder = Callable[[bytes], object]

DECODERS: dict[str, Decoder] = {"trajectory": wire.decode_trajectory, "policy_weights": wire.decode_policy_weights}

WIRE_INTEGERS = st.integers(-(2**63), 2**64 - 1)
DIMENSIONS = st.integers(1, 5)

SMALL = Trajectory(
    observations=np.array([[1.0, -2.0], [0.5, 4.0]], dtype=np.float32),
    actions=np.array([[0.25]], dtype=np.float32),
    rewards=np.array([-1.0], dtype=np.float32),
    terminated=False,
    truncated=True,
    origin=Origin(actor_id=3, epoch=2, sequence=7, policy_version=300, episode=9, first_step=199),
)
SMALL_POLICY = PolicyWeights(
    spec=PolicySpec(observation_dim=2, action_dim=1, hidden_sizes=()),
    version=1,
    grad_steps=25_000,
    env_steps=0,
    published_unix_seconds=1.5,
    weights=(np.array([[1.0, 2.0]], dtype=np.float32),),
    biases=(np.array([3.0], dtype=np.float32),),
    log_std=np.array([-1.0], dtype=np.float32),
)
GOLDEN_TRAJECTORY = bytes.fromhex(
    "9502aa7472616a6563746f727900ce2bbc363ac4429696030207cd012c09ccc7c2c393a33c6634920202c4100000803f0000"
    "00c00000003f0000804093a33c6634920101c4040000803e93a33c66349101c404000080bf"
)
GOLDEN_POLICY = bytes.fromhex(
    "9502ae706f6c6963795f7765696768747300ce40216b2cc4439594020190c39401cd61a800cb3ff80000000000009193a33c"
    "6634920102c4080000803f000000409193a33c66349101c4040000404093a33c66349101c404000080bf"
)


def any_floats(*shape: int) -> st.SearchStrategy[FloatArray]:
    """Float32 arrays of every bit pattern: NaN payloads, infinities, minus zero, subnormals."""
    size = 4 * int(np.prod(shape))
    return st.binary(min_size=size, max_size=size).map(lambda data: np.frombuffer(data, np.float32).reshape(shape))


def finite_floats(*shape: int) -> st.SearchStrategy[FloatArray]:
    return any_floats(*shape).map(np.nan_to_num)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    steps, observation_dim, action_dim = draw(st.integers(0, 6)), draw(DIMENSIONS), draw(DIMENSIONS)
    return Trajectory(
        observations=draw(any_floats(steps + 1, observation_dim)),
        actions=draw(any_floats(steps, action_dim)),
        rewards=draw(any_floats(steps)),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        origin=Origin(*draw(st.tuples(*[WIRE_INTEGERS] * 6))),
    )


@st.composite
def policies(draw: st.DrawFn) -> PolicyWeights:
    spec = PolicySpec(draw(DIMENSIONS), draw(DIMENSIONS), tuple(draw(st.lists(DIMENSIONS, max_size=3))))
    return PolicyWeights(
        spec=spec,
        version=draw(WIRE_INTEGERS),
        grad_steps=draw(WIRE_INTEGERS),
        env_steps=draw(WIRE_INTEGERS),
        published_unix_seconds=draw(st.floats(allow_nan=False, allow_infinity=False)),
        weights=tuple(draw(finite_floats(*shape)) for shape in spec.layer_shapes),
        biases=tuple(draw(finite_floats(rows)) for rows, _ in spec.layer_shapes),
        log_std=draw(finite_floats(spec.action_dim)),
    )


MSGPACK_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | WIRE_INTEGERS
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["<f4", "<f8", "O", 0, -1, 2**62, WIRE_VERSION]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner),
    max_leaves=12,
)


def seal(kind: str, body: Any, /, **changed: Any) -> bytes:
    """A message with a valid envelope around any body; `changed` spoils parts of the envelope."""
    return seal_packed(kind, msgpack.packb(body), **changed)


def seal_packed(kind: str, packed: bytes, /, **changed: Any) -> bytes:
    """The same around a body that is msgpack already, or claims to be."""
    parts = {"version": WIRE_VERSION, "kind": kind, "codec": 0, "checksum": zlib.crc32(packed), "body": packed}
    return bytes(msgpack.packb(list({**parts, **changed}.values())))


def body_of(message: bytes) -> list[Any]:
    body: list[Any] = msgpack.unpackb(msgpack.unpackb(message)[4])
    return body


def replace_at(body: Any, path: list[int], value: Any) -> Any:
    """`body` with one node exchanged; the path's numbers wrap around."""
    if not path or not isinstance(body, list) or not body:
        return value
    index = path[0] % len(body)
    return [replace_at(item, path[1:], value) if i == index else item for i, item in enumerate(body)]


def same_bytes(left: FloatArray, right: FloatArray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def assert_refuses(decode: Decoder, message: bytes) -> None:
    """Decoding raises WireError, with a text short enough for a log; any other error fails the test."""
    with pytest.raises(WireError) as raised:
        decode(message)
    assert len(str(raised.value)) < 500


def assert_decodes_or_refuses(decode: Decoder, message: bytes) -> None:
    """As `assert_refuses`, for messages that may happen to be valid."""
    with contextlib.suppress(WireError):
        decode(message)
        return
    assert_refuses(decode, message)


@given(trajectories())
def test_a_trajectory_comes_back_bit_for_bit(sent: Trajectory) -> None:
    got = wire.decode_trajectory(wire.encode_trajectory(sent))
    assert (got.origin, got.terminated, got.truncated) == (sent.origin, sent.terminated, sent.truncated)
    assert same_bytes(got.observations, sent.observations)
    assert same_bytes(got.actions, sent.actions)
    assert same_bytes(got.rewards, sent.rewards)


@given(policies())
def test_policy_weights_come_back_bit_for_bit(sent: PolicyWeights) -> None:
    got = wire.decode_policy_weights(wire.encode_policy_weights(sent))
    assert got.spec == sent.spec
    assert (got.version, got.grad_steps, got.env_steps) == (sent.version, sent.grad_steps, sent.env_steps)
    assert got.published_unix_seconds == sent.published_unix_seconds
    for ours, theirs in zip((*got.weights, *got.biases), (*sent.weights, *sent.biases), strict=True):
        assert same_bytes(ours, theirs)
    assert same_bytes(got.log_std, sent.log_std)


def test_memory_layout_of_the_sender_does_not_matter() -> None:
    columns_first = np.asfortranarray(SMALL.observations)
    sent = Trajectory(columns_first, SMALL.actions, SMALL.rewards, False, True, SMALL.origin)
    assert wire.encode_trajectory(sent) == wire.encode_trajectory(SMALL)


def test_the_format_of_a_trajectory_is_what_it_always_was() -> None:
    """A change here is a new wire version: running actors and stored streams speak the old one."""
    assert wire.encode_trajectory(SMALL).hex() == GOLDEN_TRAJECTORY.hex()
    assert same_bytes(wire.decode_trajectory(GOLDEN_TRAJECTORY).observations, SMALL.observations)


def test_the_format_of_policy_weights_is_what_it_always_was() -> None:
    assert wire.encode_policy_weights(SMALL_POLICY).hex() == GOLDEN_POLICY.hex()
    assert same_bytes(wire.decode_policy_weights(GOLDEN_POLICY).weights[0], SMALL_POLICY.weights[0])


@pytest.mark.parametrize("kind", DECODERS)
@given(noise=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(kind: str, noise: bytes) -> None:
    assert_refuses(DECODERS[kind], noise)


@pytest.mark.parametrize("kind", DECODERS)
@given(value=MSGPACK_VALUES)
def test_an_arbitrary_msgpack_value_is_refused(kind: str, value: Any) -> None:
    assert_refuses(DECODERS[kind], msgpack.packb(value))


@pytest.mark.parametrize("kind", DECODERS)
@given(body=MSGPACK_VALUES)
def test_an_arbitrary_body_in_a_valid_envelope_is_refused(kind: str, body: Any) -> None:
    assert_refuses(DECODERS[kind], seal(kind, body))


@given(path=st.lists(st.integers(0, 5), max_size=3), value=MSGPACK_VALUES)
@example(path=[4, 1], value=[0, 2**62])
@example(path=[5], value=["<f4", [0, 2**63], b""])
@example(path=[5], value=["<f4", [2**40, 0, 2**40], b""])
@example(path=[0, 0], value="3")
def test_a_trajectory_with_one_foreign_part_decodes_or_is_refused(path: list[int], value: Any) -> None:
    changed = seal("trajectory", replace_at(body_of(wire.encode_trajectory(SMALL)), path, value))
    assert_decodes_or_refuses(wire.decode_trajectory, changed)


@given(path=st.lists(st.integers(0, 4), max_size=4), value=MSGPACK_VALUES)
@example(path=[2, 0, 1], value=[0, 2**62])
@example(path=[0, 2], value=[2**62])
@example(path=[0, 1], value=-1)
@example(path=[1, 3], value=float("nan"))
@example(path=[4], value=["<f4", [0, 2**62], b""])
def test_policy_weights_with_one_foreign_part_decode_or_are_refused(path: list[int], value: Any) -> None:
    changed = seal("policy_weights", replace_at(body_of(wire.encode_policy_weights(SMALL_POLICY)), path, value))
    assert_decodes_or_refuses(wire.decode_policy_weights, changed)


@pytest.mark.parametrize(
    ("decode", "message"),
    [(wire.decode_trajectory, GOLDEN_TRAJECTORY), (wire.decode_policy_weights, GOLDEN_POLICY)],
    ids=DECODERS,
)
def test_a_message_cut_short_anywhere_is_refused(decode: Decoder, message: bytes) -> None:
    for length in range(len(message)):
        assert_refuses(decode, message[:length])
    assert_refuses(decode, message + b"\x00")


def test_any_one_damaged_byte_is_noticed_or_changes_nothing() -> None:
    # msgpack can write one integer in two ways, so a few damages spell the same message.
    for position in range(len(GOLDEN_TRAJECTORY)):
        for damage in range(1, 256):
            spoiled = bytearray(GOLDEN_TRAJECTORY)
            spoiled[position] ^= damage
            try:
                survived = wire.decode_trajectory(bytes(spoiled))
            except WireError:
                continue
            assert wire.encode_trajectory(survived) == GOLDEN_TRAJECTORY


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        ({"version": WIRE_VERSION + 1}, "wire version"),
        ({"version": b"x" * 100_000}, "wire version"),
        ({"kind": "policy_weights"}, "kind"),
        ({"kind": None}, "kind"),
        ({"codec": 1}, "codec"),
        ({"codec": ["x" * 1000] * 60}, "codec"),
        ({"codec": ["x" * 1000] * 1000}, "max_array_len"),
        ({"checksum": 0}, "checksum"),
        ({"checksum": "0"}, "checksum"),
        ({"body": "text"}, "body"),
    ],
)
def test_a_foreign_envelope_is_refused_with_the_reason(envelope: dict[str, Any], words: str) -> None:
    message = seal("trajectory", body_of(GOLDEN_TRAJECTORY), **envelope)
    with pytest.raises(WireError, match=words) as raised:
        wire.decode_trajectory(message)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "rewards",
    [
        ["<f4", [2**40], b"\0\0\0\0"],
        ["<f4", [2**62], b"\0\0\0\0"],
        ["<f4", [-1], b"\0\0\0\0"],
        ["<f4", [-1, -1], b"\0\0\0\0"],
        ["<f4", [0, 2**62], b""],
        ["<f4", [1.0], b"\0\0\0\0"],
        ["<f4", [True], b"\0\0\0\0"],
        ["<f4", [1], b"\0\0\0"],
        ["<f4", [1], "text"],
        ["<f8", [1], b"\0" * 8],
        ["|O", [1], b"\0" * 8],
        ["<f4", [1, 1], b"\0\0\0\0"],
        ["<f4", [], b"\0\0\0\0"],
    ],
    ids=repr,
)
def test_an_array_that_is_not_what_it_claims_is_refused(rewards: list[Any]) -> None:
    body = replace_at(body_of(GOLDEN_TRAJECTORY), [5], rewards)
    assert_refuses(wire.decode_trajectory, seal("trajectory", body))


def test_an_array_of_more_dimensions_than_any_message_has_is_refused() -> None:
    body = replace_at(body_of(GOLDEN_TRAJECTORY), [3], ["<f4", [1] * 5, b"\0\0\0\0"])
    assert_refuses(wire.decode_trajectory, seal("trajectory", body))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([0, 0], -2),
        ([0, 1], 1.0),
        ([0, 2], 3),
        ([0, 2], [1] * 64),
        ([1, 0], True),
        ([1, 0], "1"),
        ([1, 3], 1),
        ([1, 3], float("nan")),
        ([1, 3], float("inf")),
        ([2], []),
        ([2, 0, 2], np.array([np.nan, 0], dtype="<f4").tobytes()),
        ([4, 1], [1, 1]),
    ],
    ids=str,
)
def test_policy_weights_with_a_part_that_cannot_be_are_refused(path: list[int], value: Any) -> None:
    body = replace_at(body_of(GOLDEN_POLICY), path, value)
    assert_refuses(wire.decode_policy_weights, seal("policy_weights", body))


def test_a_huge_claimed_shape_costs_no_memory() -> None:
    body = replace_at(body_of(GOLDEN_TRAJECTORY), [3], ["<f4", [2**20, 2**12], b"\0\0\0\0"])
    message = seal("trajectory", body)
    tracemalloc.start()
    try:
        assert_refuses(wire.decode_trajectory, message)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("place", ["envelope", "body"])
def test_lists_of_lists_of_nothing_cost_no_memory(place: str) -> None:
    """Each list is short; together they would take 65 times the bytes that say so."""
    bomb = b"\xc0"
    for _ in range(4):
        bomb = b"\xdc\x00\x20" + bomb * 32
    message = seal_packed("trajectory", bomb) if place == "body" else bomb
    assert len(message) > 2**20
    tracemalloc.start()
    try:
        assert_refuses(wire.decode_trajectory, message)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * len(message)


def test_the_largest_policy_that_is_allowed_is_read() -> None:
    spec = PolicySpec(observation_dim=1, action_dim=1, hidden_sizes=(1,) * 63)
    one = np.ones(1, dtype=np.float32)
    policy = PolicyWeights(spec, 1, 0, 0, 0.5, (one.reshape(1, 1),) * 64, (one,) * 64, one)
    assert wire.decode_policy_weights(wire.encode_policy_weights(policy)).spec == spec


def test_arrays_are_read_only_views_of_received_bytes() -> None:
    got = wire.decode_trajectory(GOLDEN_TRAJECTORY)
    for array in (got.observations, got.actions, got.rewards):
        owner: Any = array
        while isinstance(owner, np.ndarray):
            assert not owner.flags.writeable
            owner = owner.base
        assert isinstance(owner, bytes)


def test_weights_that_do_not_fit_their_own_spec_are_refused() -> None:
    body = replace_at(body_of(GOLDEN_POLICY), [0, 0], 3)
    with pytest.raises(WireError, match=r"weights\[0\]: expected \(1, 3\)"):
        wire.decode_policy_weights(seal("policy_weights", body))


def test_only_float32_is_sent() -> None:
    doubles: Any = SMALL.rewards.astype(np.float64)
    with pytest.raises(WireError, match="float32"):
        wire.encode_trajectory(Trajectory(SMALL.observations, SMALL.actions, doubles, False, False, SMALL.origin))


def test_a_message_over_the_limit_is_neither_written_nor_read() -> None:
    too_many = np.zeros((wire.MAX_MESSAGE_BYTES // 4, 1), dtype=np.float32)
    with pytest.raises(WireError, match="at most"):
        wire.encode_trajectory(Trajectory(too_many, SMALL.actions, SMALL.rewards, False, False, SMALL.origin))
    with pytest.raises(WireError, match="at most"):
        wire.decode_trajectory(bytes(wire.MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_does_not_break_the_reader(depth: int) -> None:
    assert_refuses(wire.decode_trajectory, b"\x91" * depth + b"\xc0")
