"""A voice and a hum, heard at once by silero-vad: two sequences, each with a state of its own at the server.

`python -m examples.speech [HOST:PORT]` sends both to the gateway of the home, or to the one that is named, and prints
for each moment how likely it is speech. The voice is three vowels, made as a throat does it: pulses through resonances.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from controlplane.cli.addresses import gateway_addresses
from controlplane.local.home import Home

RATE_HZ = 16_000
STEP, BEFORE = 512, 64
"""Samples of one request (32 ms), and of what came before that are sent again with it."""

Sound = NDArray[np.float32]

VOWELS = (((730, 1090, 2440), 120), ((270, 2290, 3010), 130), ((570, 840, 2410), 110))
"""The resonances of a, i and o, and the pitch at which each is said, in Hz."""


def vowel(resonances: tuple[int, ...], pitch_hz: int, seconds: float = 0.25) -> Sound:
    """A vowel of a voice that sinks a little, from silence to silence."""
    count = int(seconds * RATE_HZ)
    moments = np.arange(count) / RATE_HZ
    turns = np.cumsum(pitch_hz * (1 + 0.05 * np.sin(8 * np.pi * moments) - 0.1 * moments)) / RATE_HZ
    sound = np.diff(np.floor(turns), prepend=0.0)
    for resonance_hz, width_hz in zip(resonances, (60, 90, 120), strict=True):
        radius = np.exp(-np.pi * width_hz / RATE_HZ)
        first, second = 2 * radius * np.cos(2 * np.pi * resonance_hz / RATE_HZ), -radius * radius
        for index in range(2, count):
            sound[index] += first * sound[index - 1] + second * sound[index - 2]
    sound *= np.minimum(1, np.minimum(moments, moments[::-1]) / 0.03)
    made: Sound = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return made


def voice() -> Sound:
    """Silence, three vowels, silence: a second and a half."""
    pause = np.zeros(RATE_HZ // 20, dtype=np.float32)
    said = [part for resonances, pitch_hz in VOWELS for part in (vowel(resonances, pitch_hz), pause)]
    return np.concatenate([pause, pause, *said, np.zeros(RATE_HZ // 2, dtype=np.float32)])


def hum(count: int) -> Sound:
    """So many samples of a steady tone."""
    made: Sound = (0.3 * np.sin(2 * np.pi * 220 * np.arange(count) / RATE_HZ)).astype(np.float32)
    return made


def heard(client: Any, sounds: list[Sound]) -> list[list[float]]:
    """For each moment, how likely each of the sounds (equally long) is speech. Each is a sequence; they take turns."""
    steps = range(BEFORE, len(sounds[0]) - STEP + 1, STEP)
    rate = triton.InferInput("sr", [1], "INT64")
    rate.set_data_from_numpy(np.array([RATE_HZ], dtype=np.int64))
    rows = []
    for at in steps:
        row = []
        for number, sound in enumerate(sounds, start=1):
            part = triton.InferInput("input", [1, BEFORE + STEP], "FP32")
            part.set_data_from_numpy(sound[None, at - BEFORE : at + STEP])
            answer = client.infer(
                "silero-vad",
                [part, rate],
                sequence_id=number,
                sequence_start=at == steps[0],
                sequence_end=at == steps[-1],
                client_timeout=60,
            )
            row.append(float(answer.as_numpy("output").ravel()[0]))
        rows.append(row)
    return rows


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(prog="python -m examples.speech", description="Is it speech?")
    parser.add_argument("gateway", metavar="HOST:PORT", nargs="?", help="its gRPC address; without it, the home's")
    address = parser.parse_args().gateway
    if address is None:
        address = gateway_addresses(Home(Path(os.environ.get("CTL_HOME_DIR", ".ctl")))).grpc
    said = voice()
    with contextlib.closing(triton.InferenceServerClient(address)) as client:
        rows = heard(client, [said, hum(len(said))])
    print("seconds  voice   hum")
    for number, row in enumerate(rows):
        print(f"{number * STEP / RATE_HZ:7.2f}  " + "  ".join(f"{likely:5.2f}" for likely in row))


if __name__ == "__main__":
    main()
