"""Hostile messages, each a function of (seed, number) alone: what failed can be made again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from replay_service import wire
from replay_service.experience import WIRE_VERSION, ExperienceSpec, Origin, Trajectory
from replay_service.policy_weights import PolicySpec, PolicyWeights

SPEC = ExperienceSpec("fuzz", observation_dim=3, action_dim=2, max_episode_steps=20)

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.0, 1.5,
    float("nan"), float("inf"), -float("inf"), 1e308, "", "trajectory", "policy_weights", "<f4", "<f8", "|O", ">f4",
    "x" * 1_000, b"", b"\x00" * 4, b"\xff" * 64, [], [[]], [0], [-1], [2**40, 2**40], [1] * 64, [[1]] * 64,
    ["<f4", [0], b""], ["<f4", [2**31, 2**31], b"\x00" * 4], ["<f4", [1], b"\x00" * 4], ["<f4", [-1, -4], b"\x00" * 16],
)  # fmt: skip
_BITS = (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000, 0xFFFFFFFF)
_HEADERS = (
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc5\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1", b"\xd4\x01\x00", b"\x81\x01\x01",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message and the stream fields around it."""

    kind: str
    """How it was made."""
    message: bytes
    fields: dict[bytes, bytes]


def trajectory(random: np.random.Generator, *, epoch: int = 1, sequence: int = 0) -> Trajectory:
    """A valid trajectory of `SPEC`."""
    steps = int(random.integers(1, 6))
    return Trajectory(
        observations=random.standard_normal((steps + 1, 3), dtype=np.float32),
        actions=random.standard_normal((steps, 2), dtype=np.float32),
        rewards=random.standard_normal(steps, dtype=np.float32),
        terminated=bool(random.integers(2)),
        truncated=bool(random.integers(2)),
        origin=Origin(int(random.integers(8)), epoch, sequence, int(random.integers(100)), sequence, 0),
    )


def policy(random: np.random.Generator) -> PolicyWeights:
    """Valid weights, one time in two for another environment."""
    sizes = (3, 2) if random.integers(2) else (int(random.integers(1, 6)), int(random.integers(1, 6)))
    spec = PolicySpec(*sizes, tuple(int(n) for n in random.integers(1, 5, size=random.integers(0, 3))))
    return PolicyWeights(
        spec=spec, version=int(random.integers(1, 100)), grad_steps=1, env_steps=0, published_unix_seconds=1.5,
        weights=tuple(random.standard_normal(shape, dtype=np.float32) for shape in spec.layer_shapes),
        biases=tuple(random.standard_normal(rows, dtype=np.float32) for rows, _ in spec.layer_shapes),
        log_std=random.standard_normal(spec.action_dim, dtype=np.float32),
    )  # fmt: skip


def seal(kind: Any, body: bytes, *, version: Any = WIRE_VERSION, codec: Any = 0, checksum: Any = None) -> bytes:
    """An envelope around any body, with the checksum that belongs to it unless another is given."""
    parts = [version, kind, codec, zlib.crc32(body) if checksum is None else checksum, body]
    return bytes(msgpack.packb(parts, use_bin_type=True))


def hostile(seed: int, number: int) -> Hostile:
    """The message with this number."""
    random = np.random.default_rng([seed, number])
    sent = trajectory(random, sequence=int(random.integers(1000)))
    is_weights = random.random() < 0.3
    valid = wire.encode_policy_weights(policy(random)) if is_weights else wire.encode_trajectory(sent)
    name = _KINDS[int(random.integers(len(_KINDS)))]
    message = globals()[f"_{name}"](random, valid)
    origin = sent.origin
    fields = {
        b"m": message, b"a": b"%d" % origin.actor_id, b"e": b"%d" % origin.epoch, b"s": b"%d" % origin.sequence,
        b"n": b"%d" % sent.num_steps, b"f": b"%d" % random.integers(10_000),
    }  # fmt: skip
    if random.random() < 0.3:
        _spoil_fields(random, fields)
    return Hostile(name, message, fields)


_KINDS = ("valid", "flipped", "cut", "spliced", "foreign_part", "hostile_bits", "envelope", "header", "bomb", "noise")


def _valid(_random: np.random.Generator, valid: bytes) -> bytes:
    return valid


def _flipped(random: np.random.Generator, valid: bytes) -> bytes:
    spoiled = bytearray(valid)
    for _ in range(random.integers(1, 5)):
        spoiled[random.integers(len(spoiled))] ^= int(random.integers(1, 256))
    return bytes(spoiled)


def _cut(random: np.random.Generator, valid: bytes) -> bytes:
    return valid[: random.integers(len(valid))]


def _spliced(random: np.random.Generator, valid: bytes) -> bytes:
    """Bytes of the body moved, doubled or put in, under a checksum that fits."""
    kind, body = _parts(valid)
    first, second, third = sorted(int(n) for n in random.integers(0, len(body) + 1, size=3))
    return seal(kind, body[:first] + body[second:third] + random.bytes(int(random.integers(4))) + body[second:])


def _foreign_part(random: np.random.Generator, valid: bytes) -> bytes:
    """One to three nodes of the body exchanged for something else, under a checksum that fits."""
    kind, body = _parts(valid)
    tree = msgpack.unpackb(body)
    for _ in range(random.integers(1, 4)):
        tree = _exchange(random, tree)
    return seal(kind, msgpack.packb(tree, use_bin_type=True))


def _exchange(random: np.random.Generator, node: Any) -> Any:
    if not isinstance(node, list) or not node or random.random() < 0.15:
        return _VALUES[int(random.integers(len(_VALUES)))]
    index = int(random.integers(len(node)))
    choice = random.random()
    if choice < 0.05:
        return node[:index] + node[index + 1 :]
    if choice < 0.1:
        return [*node[:index], node[index], *node[index:]]
    return [*node[:index], _exchange(random, node[index]), *node[index + 1 :]]


def _hostile_bits(random: np.random.Generator, valid: bytes) -> bytes:
    """NaN, infinities, subnormals and the largest numbers in the arrays."""
    kind, body = _parts(valid)

    def spoil(node: Any) -> Any:
        if isinstance(node, list):
            return [spoil(item) for item in node]
        if isinstance(node, bytes) and len(node) >= 4 and random.random() < 0.5:
            numbers = np.frombuffer(node[: len(node) // 4 * 4], dtype="<u4").copy()
            numbers[random.integers(len(numbers))] = _BITS[int(random.integers(len(_BITS)))]
            return numbers.tobytes()
        return node

    return seal(kind, msgpack.packb(spoil(msgpack.unpackb(body)), use_bin_type=True))


def _envelope(random: np.random.Generator, valid: bytes) -> bytes:
    """Another wire version, kind, codec or checksum; a stranger's weights where experience is expected."""
    kind, body = _parts(valid)
    value = _VALUES[int(random.integers(len(_VALUES)))]
    match int(random.integers(5)):
        case 0:
            return seal(kind, body, version=WIRE_VERSION - 1)
        case 1:
            return seal(kind, body, version=value)
        case 2:
            return seal("policy_weights" if kind == "trajectory" else "trajectory", body)
        case 3:
            return seal(kind, body, codec=value)
        case _:
            return seal(kind, body, checksum=value)


def _header(random: np.random.Generator, valid: bytes) -> bytes:
    """A header that claims gigabytes, at any place, outside or inside of the envelope."""
    claim = _HEADERS[int(random.integers(len(_HEADERS)))]
    kind, body = _parts(valid)
    if random.random() < 0.5:
        place = int(random.integers(len(body)))
        return seal(kind, body[:place] + claim + body[place + len(claim) :])
    place = int(random.integers(len(valid)))
    return valid[:place] + claim + valid[place + len(claim) :]


def _bomb(random: np.random.Generator, valid: bytes) -> bytes:
    """Much structure in few bytes: deep, or wide at every level."""
    kind, _ = _parts(valid)
    width, depth = ((1, int(random.integers(1, 3_000))), (15, 3), (60, 2))[int(random.integers(3))]
    packed = b"\xc0"
    for _ in range(depth):
        packed = (bytes([0x90 | width]) if width < 16 else b"\xdc" + width.to_bytes(2, "big")) + packed * width
        if len(packed) > 20_000:
            break
    return seal(kind, packed) if random.random() < 0.5 else packed


def _noise(random: np.random.Generator, valid: bytes) -> bytes:
    kind, _ = _parts(valid)
    noise = random.bytes(int(random.integers(200)))
    return seal(kind, noise) if random.random() < 0.5 else noise


def _parts(valid: bytes) -> tuple[str, bytes]:
    _version, kind, _codec, _checksum, body = msgpack.unpackb(valid)
    return kind, body


def _spoil_fields(random: np.random.Generator, fields: dict[bytes, bytes]) -> None:
    """A wrong epoch, a sequence that has been, a count that does not fit, no number at all, or no field at all."""
    name = list(fields)[int(random.integers(len(fields)))]
    if random.random() < 0.2:
        del fields[name]
    elif name != b"m":
        values = (
            b"0",
            b"-1",
            b"2",
            b"",
            b"nan",
            b"1e3",
            b"9" * 30,
            b"9" * 5_000,
            b" 1",
            b"1_0",
            b"\xff",
            b"0x1",
            b"+1",
            b"1.0",
        )
        fields[name] = values[int(random.integers(len(values)))]
