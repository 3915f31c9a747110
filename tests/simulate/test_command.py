"""`ctl simulate` from end to end: data on standard output, all else on standard error, errors with a way out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from controlplane.cli.main import main

Ctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.chdir(tmp_path)
    for name in ("CTL_HOME_DIR", "CTL_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    rows = [f"{second + part / 4},{'ab'[part % 2]},0.3" for second in range(120) for part in range(4)]
    (tmp_path / "trace.csv").write_text("timestamp,model,work\n" + "\n".join(rows) + "\n")
    (tmp_path / "plain.csv").write_text("timestamp\n1\n2\n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "system.yaml").write_text(
        "fleets:\n"
        "  - {name: cpu, replicas: {min: 1, max: 4}, scaling: {queue_ms: 200, share: 0.9}}\n"
        "  - {name: gpu, replicas: {min: 0, max: 2}, scaling: {in_flight: 4}}\n"
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["simulate", *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_trace_alone_is_enough(ctl: Ctl, tmp_path: Path) -> None:
    status, out, err = ctl("--trace", "trace.csv")
    assert status == 0
    assert out.splitlines()[0].split()[:2] == ["POLICY", "REPLICA-HOURS"]
    assert "this autoscaler" in out
    assert "trace trace.csv: 480 requests for 2 models in 120 s" in err
    assert "fleet default: 1 to 20 replicas of 4 slots, 10 s to start" in err
    assert not (tmp_path / ".ctl").exists()


def test_a_trace_comes_through_a_pipe(ctl: Ctl, tmp_path: Path) -> None:
    with (tmp_path / "trace.csv").open() as trace:
        command = [sys.executable, "-m", "controlplane.cli.main", "simulate", "--trace", "-"]
        done = subprocess.run(command, input=trace.read(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "480 requests for 2 models" in done.stderr


def test_a_comparison_as_data_with_a_picture(ctl: Ctl, tmp_path: Path) -> None:
    arguments = ("--trace", "trace.csv", "-f", "system.yaml", "--fleet", "cpu", "--compare", "--slots", "1")
    status, out, err = ctl(*arguments, "--plot", "p.svg", "-o", "json")
    assert status == 0
    data = json.loads(out)
    assert data["trace"]["requests"] == 480
    assert (data["fleet"]["name"], data["fleet"]["max_replicas"], data["fleet"]["slots"]) == ("cpu", 4, 1)
    assert data["outcomes"][0]["policy"] == "this autoscaler"
    assert "gap_closed" in data
    assert list(data["at_goal"]) == ["this autoscaler", "fixed", "HPA, in flight", "KEDA, queue length", "oracle"]
    assert data["at_goal"]["this autoscaler"] is None
    assert "no other goal that was tried would have met this one" in err
    assert "each peer is set to the cheapest" in err
    picture = (tmp_path / "p.svg").read_text()
    assert picture.startswith("<?xml")
    assert len(picture) < 300_000


def test_a_goal_that_would_have_been_enough_is_told(ctl: Ctl, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    at = np.sort(np.concatenate([60 * (minute + random.random(60 + minute % 5 * 60)) for minute in range(15)]))
    (tmp_path / "waves.csv").write_text("timestamp,work\n" + "".join(f"{each:.3f},0.8\n" for each in at))
    (tmp_path / "strict.yaml").write_text(
        "fleets: [{name: cpu, replicas: {min: 0, max: 20}, scaling: {queue_ms: 5000, share: 0.98}}]"
    )
    arguments = ("--trace", "waves.csv", "-f", "strict.yaml", "--compare", "--slots", "1", "--start-s", "2")
    status, out, err = ctl(*arguments, "-o", "json")
    data = json.loads(out)
    ours, told = data["outcomes"][0], data["at_goal"]["this autoscaler"]
    assert status == 0
    assert told["share"] >= 0.98
    assert told["replica_hours"] < ours["replica_hours"]
    assert f"with hindsight: had the file asked for {told['set_to']}, it would have been" in err


def test_the_budget_of_all_fleets_holds(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text(
        "fleets: [{name: a, replicas: {min: 0, max: 9}}]\ncontroller: {max_replicas: 3}"
    )
    _, _, err = ctl("--trace", "trace.csv", "-f", "budget.yaml")
    assert "fleet a: 0 to 3 replicas" in err


def test_a_schedule_stays_within_the_budget(ctl: Ctl, tmp_path: Path) -> None:
    fleet = (
        "name: a, replicas: {min: 0, max: 2}, scaling: {schedule: [{begins: '0:00', ends: '24:00', min: 1, max: 9}]}"
    )
    (tmp_path / "budget.yaml").write_text(f"fleets: [{{{fleet}}}]\ncontroller: {{max_replicas: 3}}")
    busy = ("--rate-multiplier", "8", "--slots", "1", "--start-s", "1")  # ten replicas would be
    _, text, _ = ctl("--trace", "trace.csv", "-f", "budget.yaml", "-o", "json", *busy)
    assert 2.8 < json.loads(text)["outcomes"][0]["replica_hours"] / (120 / 3600) <= 3


def test_forms_of_the_data(ctl: Ctl) -> None:
    _, wide, _ = ctl("--trace", "trace.csv", "-o", "wide")
    assert "UNSERVED" in wide
    _, text, _ = ctl("--trace", "trace.csv", "-o", "yaml", "--model", "a", "--rate-multiplier", "2")
    data = yaml.safe_load(text)
    assert (data["trace"]["requests"], data["trace"]["models"]) == (480, 1)
    assert data["outcomes"][0]["replica_hours"] > 0
    assert ctl("--trace", "trace.csv", "-o", "name")[1] == "this autoscaler\n"


def test_a_goal_of_requests_in_flight_has_no_share(ctl: Ctl) -> None:
    status, out, _ = ctl("--trace", "trace.csv", "-f", "system.yaml", "--fleet", "gpu", "-o", "json")
    assert status == 0
    outcome = json.loads(out)["outcomes"][0]
    assert outcome["share"] is None
    assert outcome["cold_requests"] > 0


def test_a_schedule_needs_a_date(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "week.yaml").write_text(
        "fleets: [{name: cpu, replicas: {min: 1, max: 4}, scaling: {schedule: "
        '[{days: [fri], begins: "0:00", ends: "24:00", min: 3}]}}]'
    )
    _, out, err = ctl("--trace", "trace.csv", "-f", "week.yaml", "-o", "json")
    assert "the trace says no date: to the fleet's schedule it begins on Thursday" in err
    assert json.loads(out)["outcomes"][0]["most_replicas"] == 1
    friday_s = 1_767_312_000
    rows = "".join(f"{friday_s + second}\n" for second in range(120))
    (tmp_path / "friday.csv").write_text(f"timestamp\n{rows}")
    _, out, err = ctl("--trace", "friday.csv", "-f", "week.yaml", "-o", "json")
    assert "no date" not in err
    assert json.loads(out)["outcomes"][0]["most_replicas"] == 3


def test_a_peer_that_never_reaches_it_is_named(ctl: Ctl, tmp_path: Path) -> None:
    at = [*range(60), *(60 + number / 100 for number in range(1000)), *range(70, 200)]
    (tmp_path / "burst.csv").write_text("timestamp,work\n" + "".join(f"{each},0.5\n" for each in at))
    status, out, err = ctl("--trace", "burst.csv", "--compare", "-o", "json", "--start-s", "40", "--warm-up", "100s")
    data = json.loads(out)
    assert status == 0
    named = {each["policy"] for each in data["outcomes"]} | set(data["not_reached"])
    assert named == {"this autoscaler", "fixed", "HPA, in flight", "KEDA, queue length", "oracle"}
    for name, share in data["not_reached"].items():
        assert share < data["outcomes"][0]["share"]
        assert f"{name} reaches that with no setting tried" in err


def test_a_missed_goal_is_told(ctl: Ctl) -> None:
    status, _, err = ctl("--trace", "trace.csv", "--rate-multiplier", "20", "--slots", "1", "--start-s", "60")
    assert status == 0
    assert "the goal is missed" in err


def test_a_goal_that_no_size_can_meet_is_told(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "tight.yaml").write_text(
        "fleets: [{name: cpu, replicas: {min: 1, max: 4}, scaling: {latency_ms: 200}}]\n"
    )
    (tmp_path / "mixed.csv").write_text(
        "timestamp,work\n" + "".join(f"{each},{each % 4 / 10}\n" for each in range(100))
    )
    status, _, err = ctl("--trace", "mixed.csv", "-f", "tight.yaml")
    assert status == 0
    assert "no size meets that for 25.000% of the requests: their work alone takes longer" in err
    _, _, err = ctl("--trace", "trace.csv")
    assert "no size meets" not in err


def test_a_start_may_take_an_hour(ctl: Ctl, tmp_path: Path) -> None:
    """It is longer than half of the past that is kept: the moments of the trace have no sequel yet, or hardly any."""
    (tmp_path / "long.csv").write_text("timestamp\n" + "".join(f"{each}\n" for each in range(0, 3 * 3600, 20)))
    status, out, _ = ctl("--trace", "long.csv", "--start-s", "3600", "-o", "json")
    assert status == 0
    assert json.loads(out)["outcomes"][0]["share"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option '--trace'"),
        (("--trace", "none.csv"), "--trace: none.csv can't be read"),
        (("--trace", "system.yaml"), "timestamp: system.yaml has the columns fleets:"),
        (("--trace", "trace.csv", "-f", "none.yaml"), "none.yaml can't be read"),
        (("--trace", "trace.csv", "-f", "trace.csv"), "trace.csv"),
        (("--trace", "trace.csv", "-f", "system.yaml"), "--fleet: system.yaml defines several fleets"),
        (("--trace", "trace.csv", "-f", "system.yaml", "--fleet", "x"), "one of cpu, gpu"),
        (("--trace", "trace.csv", "--fleet", "cpu"), "name the file with -f"),
        (("--trace", "trace.csv", "--model", "c"), "one of a, b"),
        (("--trace", "plain.csv", "--model", "c"), "does not say which models its requests are for"),
        (("--trace", "trace.csv", "--rate-multiplier", "0"), "--rate-multiplier"),
        (("--trace", "trace.csv", "--slots", "0"), "--slots"),
        (("--trace", "trace.csv", "--start-s", "-1"), "--start-s"),
        (("--trace", "trace.csv", "--start-s", "nan"), "--start-s"),
        (("--trace", "trace.csv", "--slots", "100000"), "--slots"),
        (("--trace", "trace.csv", "--work-s", "0"), "--work-s"),
        (("--trace", "trace.csv", "--work-s", "1e300"), "--work-s"),
        (("--trace", "trace.csv", "--decode-per-s", "nan"), "--decode-per-s"),
        (("--trace", "trace.csv", "--warm-up", "1h"), "--warm-up: nothing comes after a warm-up"),
        (("--trace", "trace.csv", "--plot", "p.gif"), "end it with .png or .svg"),
        (("--trace", "trace.csv", "--plot", "none/p.png"), "there is no folder"),
        (("--trace", "trace.csv", "--plot", "folder.png"), "folder.png is a folder"),
        (("--trace", "trace.csv", "-f", "system.yaml", "--fleet", "gpu", "--compare"), "--compare: a goal of requests"),
    ],
)
def test_what_is_refused(ctl: Ctl, arguments: tuple[str, ...], said: str) -> None:
    status, out, err = ctl(*arguments)
    assert (status, out) == (2, "")
    assert "error[INVALID]" in err
    assert said in err
    assert "→" in err
