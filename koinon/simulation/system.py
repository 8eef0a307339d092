"""The system side of simulations: devices of different speed that come and go, simulated time, and asynchrony."""

from koinon.simulation._buffered import Buffer, BufferedSchedule
from koinon.simulation._fed_buff import (
    FedBuffProcess,
    FedBuffState,
    FedBuffStep,
    build_fed_buff_process,
    inverse_square_root,
    run_fed_buff,
)
from koinon.simulation._system import Device, Participation, RoundOutcome, SystemModel, SystemSimulation

__all__ = [
    "Buffer",
    "BufferedSchedule",
    "Device",
    "FedBuffProcess",
    "FedBuffState",
    "FedBuffStep",
    "Participation",
    "RoundOutcome",
    "SystemModel",
    "SystemSimulation",
    "build_fed_buff_process",
    "inverse_square_root",
    "run_fed_buff",
]
