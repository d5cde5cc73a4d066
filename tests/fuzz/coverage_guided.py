"""Coverage-guided fuzzing of everything that reads foreign bytes, with atheris.

    python -m tests.fuzz.coverage_guided TARGET CORPUS_FOLDER -max_total_time=600

atheris is no dependency of the project: `pip install atheris`. TARGET: trajectory, policy_weights, npz, pickle or hdf5.
Options after the folder are libFuzzer's; an input that breaks a promise is left in a file `crash-...` of the working
folder, and is repeated by naming that file in the folder's place. Only the declared error may be raised; libFuzzer's
`-rss_limit_mb` watches the memory.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["replay_service", "msgpack", "zipfile", "pickle"]):
    import msgpack
    import numpy as np

    from replay_service import wire
    from replay_service.datasets import load_dataset, write_npz
    from replay_service.datasets.episode import Episode
    from replay_service.errors import DatasetError, WireError
    from tests.fuzz.messages import _sound_trajectory, _sound_weights
    from tests.fuzz.mutations import SPEC, policy, seal, trajectory

_SUFFIX = {"npz": ".npz", "pickle": ".pickle", "hdf5": ".hdf5"}


def _message(kind: str, data: bytes) -> bytes:
    """The input as it is, or as a body under a checksum that fits: without that, few inputs would get any further."""
    return data[1:] if data[:1] == b"\x00" else seal(kind, data[1:])


def _reads_trajectory(data: bytes) -> None:
    message = _message("trajectory", data)
    with contextlib.suppress(WireError):
        _sound_trajectory(wire.decode_trajectory(message), len(message))


def _reads_weights(data: bytes) -> None:
    message = _message("policy_weights", data)
    with contextlib.suppress(WireError):
        _sound_weights(wire.decode_policy_weights(message), len(message))


def _reads_file(suffix: str) -> Callable[[bytes], None]:
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    path = Path(tempfile.mkdtemp(dir=folder)) / f"data{suffix}"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(DatasetError):
            for episode in load_dataset([str(path)], spec=SPEC).episodes:
                assert np.isfinite(episode.observations).all()
                assert episode.observations.shape == (len(episode.rewards) + 1, SPEC.observation_dim)

    return read


def _write_seeds(target: str, folder: Path) -> None:
    """Valid inputs to begin with."""
    random = np.random.default_rng(0)
    if target == "trajectory":
        _write_messages(folder, wire.encode_trajectory(trajectory(random)))
    elif target == "policy_weights":
        _write_messages(folder, wire.encode_policy_weights(policy(random)))
    else:
        sent = trajectory(random)
        episode = Episode(sent.observations, sent.actions, sent.rewards, False, True)
        with tempfile.TemporaryDirectory() as scratch:
            if target == "npz":
                write_npz(Path(scratch) / "x.npz", [episode], {})
                (folder / "valid").write_bytes((Path(scratch) / "x.npz").read_bytes())
            elif target == "hdf5":
                _write_hdf5(folder / "valid", episode)
            else:
                _write_pickle(folder / "valid", episode)


def _write_messages(folder: Path, message: bytes) -> None:
    (folder / "message").write_bytes(b"\x00" + message)
    (folder / "body").write_bytes(b"\x01" + msgpack.unpackb(message)[4])


def _write_hdf5(path: Path, episode: Episode) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = getattr(episode, name)[: len(episode.rewards)]


def _write_pickle(path: Path, episode: Episode) -> None:
    import pickle

    fields = {name: getattr(episode, name)[: len(episode.rewards)] for name in ("observations", "actions", "rewards")}
    path.write_bytes(pickle.dumps([fields], protocol=2))


def main() -> int:
    """Fuzz until libFuzzer's limits."""
    targets = {"trajectory": _reads_trajectory, "policy_weights": _reads_weights}
    if len(sys.argv) < 3 or sys.argv[1] not in {*targets, *_SUFFIX}:
        print(__doc__, file=sys.stderr)
        return 2
    target, folder = sys.argv[1], Path(sys.argv[2])
    if not folder.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_seeds(target, folder)
    read = targets.get(target) or _reads_file(_SUFFIX[target])
    atheris.Setup([sys.argv[0], *sys.argv[2:]], read)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
