"""The errors that this project raises on purpose.

    AwacError
    ├── UserError                 a mistake of the user's: shown without a traceback, exit code 2
    │   ├── ConfigError           a setting is unknown, of the wrong type or out of range
    │   ├── DatasetError          a dataset is missing, unreadable or does not fit the environment
    │   ├── EnvironmentUnknown    no such environment, or one whose spaces are not supported
    │   ├── RunDirectoryError     the run directory is in use, holds another run, or cannot be written
    │   ├── RedisUnavailable      no Redis at that address, or it refused the credentials
    │   ├── DamagedState          a counter of the run in Redis was overwritten with something that is none
    │   ├── CheckpointError       one is missing, damaged or of another configuration, or cannot be read or written
    │   ├── LockstepBroken        a turn of lock-step can never be completed
    │   └── LearningDiverged      the networks hold NaN or infinity
    ├── WireError                 bytes that are not a valid message (quarantined, never fatal to a reader)
    └── ProtocolError             a peer that must not go on
        ├── SpecMismatch          it speaks of another environment, network shape or wire version
        ├── StaleEpoch            a newer incarnation of the same actor has registered
        └── EpochLost             Redis lost the actor's registration in a crash: it must register again

Every text says what was expected, what came, and where it helps what to do.
"""

from __future__ import annotations

FAILURE_EXIT_CODE = 1
USER_ERROR_EXIT_CODE = 2


class AwacError(Exception):
    """Root of this project's errors."""


class UserError(AwacError):
    """A mistake that the user can mend: shown as one message, exit code 2."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type or out of range."""


class DatasetError(UserError):
    """A dataset is missing, unreadable or does not fit the environment."""


class EnvironmentUnknown(UserError):
    """No such environment, or one whose spaces this project does not support."""


class RunDirectoryError(UserError):
    """The run directory is in use, holds another run, or cannot be written."""


class RedisUnavailable(UserError):
    """No Redis answers at the address, or it refused the credentials."""


class DamagedState(UserError):
    """A counter of the run in Redis was overwritten with something that is none."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or made by another configuration, or it cannot be read or written."""


class LockstepBroken(UserError):
    """A turn of lock-step can never be completed: a trajectory of it was damaged in storage, or is lost."""


class LearningDiverged(UserError):
    """The networks hold NaN or infinity: other settings are needed, and the last checkpoint is from before."""


class WireError(AwacError):
    """Bytes that are not a valid message."""


class ProtocolError(AwacError):
    """A peer that must not go on."""


class SpecMismatch(ProtocolError):
    """The peer speaks of another environment, network shape or wire version."""


class EpochLost(ProtocolError):
    """Redis lost this actor's registration in a crash; it must open a new epoch."""


class StaleEpoch(ProtocolError):
    """A newer incarnation of the same actor has registered with the service."""
