"""What Prometheus is given: promtool finds nothing wrong with it, and the rules give the figures that were measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from controlplane.core.errors import InvalidInput
from controlplane.metrics.program import check, configuration, rules
from tests.prometheus import programs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(rules())
    return tmp_path


def promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [programs() / "promtool", *arguments], capture_output=True, text=True, cwd=folder, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_rules(folder: Path) -> None:
    assert "rules found" in promtool(folder, "check", "rules", "rules.yaml")


def test_the_rules_give_what_was_measured(folder: Path) -> None:
    (folder / "test.yaml").write_text(Path(__file__).with_name("rules_test.yaml").read_text())
    promtool(folder, "test", "rules", "test.yaml")


@pytest.mark.parametrize("gateway", [None, "127.0.0.1:2"])
def test_the_configuration_is_one(folder: Path, gateway: str | None) -> None:
    token = folder / "token"
    token.write_text("secret\n")
    made = configuration(controller_url="http://127.0.0.1:1", token_file=token, gateway=gateway, interval_s=2)
    text = yaml.safe_dump(dict(made))
    (folder / "prometheus.yml").write_text(text)
    promtool(folder, "check", "config", "prometheus.yml")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("#!/bin/sh\necho something else\n", "is no Prometheus", id="another program"),
        pytest.param("\x7fELF", "can't be run", id="a broken program"),
        pytest.param(None, "can't be found any more", id="a program that is gone"),
    ],
)
def test_what_is_no_prometheus_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    program = tmp_path / "prometheus"
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    with pytest.raises(InvalidInput, match=said) as caught:
        check(str(program))
    assert caught.value.field == "metrics.program" and caught.value.remedy


def test_a_prometheus_is_one() -> None:
    check(str(programs() / "prometheus"))
