"""`metrics:` in a system's definition: what is accepted, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.core.errors import InvalidInput
from controlplane.local.home import Home
from controlplane.local.metrics import MetricsSettings, prometheus_url, shown_url
from controlplane.local.system import load_system, read_system, save_system


def read(tmp_path: Path, text: str) -> MetricsSettings:
    file = tmp_path / "system.yaml"
    file.write_text(f"metrics: {text}")
    return read_system(file, Home(tmp_path / "home")).metrics


def a_program(folder: Path) -> Path:
    program = folder / "prometheus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_without_the_section_servers_are_scraped(tmp_path: Path) -> None:
    assert read_system(None, Home(tmp_path)).metrics == MetricsSettings(source="scrape")


def test_one_that_runs(tmp_path: Path) -> None:
    made = read(tmp_path, "{source: prometheus, prometheus_url: 'https://me:secret@prom.example:9090/path/'}")
    url = prometheus_url(made, Home(tmp_path))
    assert url == "https://me:secret@prom.example:9090/path"
    assert shown_url(url) == "https://prom.example:9090/path"


@pytest.mark.parametrize("source", ["prometheus", "scrape"])
def test_a_program_is_found_beside_the_file_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    program = a_program(tmp_path)
    assert read(tmp_path, f"{{source: {source}, program: ./prometheus}}").program == str(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read(tmp_path, f"{{source: {source}, program: prometheus}}").program == str(program)


def test_it_is_found_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    a_program(tmp_path)
    made = read(tmp_path, "{source: prometheus, program: ./prometheus}")
    save_system(read_system(tmp_path / "system.yaml", home), home)
    system = load_system(home)
    assert system is not None and system.metrics == made
    assert prometheus_url(made, home) is None, "it has not been started yet"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("{source: prometheus}", "there is no Prometheus to ask", id="neither url nor program"),
        pytest.param("{source: promethus}", "metrics.source", id="a source that is none"),
        pytest.param("{sorce: scrape}", "did you mean `source`?", id="an unknown setting"),
        pytest.param("{source: prometheus, program: no-such-prometheus}", "metrics.program", id="no such program"),
        pytest.param("{source: prometheus, program: ./no/such}", "apt-get install prometheus", id="no such path"),
        pytest.param("{source: prometheus, program: ''}", "metrics.program", id="an empty program"),
        pytest.param("{source: prometheus, program: ./system.yaml}", "metrics.program", id="a file that can't be run"),
        pytest.param("{source: prometheus, program: .}", "metrics.program", id="a folder"),
        pytest.param("{prometheus_url: 'http://127.0.0.1:9090'}", "source: prometheus", id="a url that nobody asks"),
        pytest.param(
            "{source: prometheus, prometheus_url: 'http://h:1', program: sh}", "one alone can be asked", id="both"
        ),
        *(
            pytest.param(
                f"{{source: prometheus, prometheus_url: '{url}'}}", "metrics.prometheus_url", id=url or "empty"
            )
            for url in (
                "",
                "127.0.0.1:9090",
                "localhost",
                "ftp://host",
                "http://",
                "http://host:99999",
                "http://host:port",
                "http://host:0",
                "http://host/?query=1",
                "http://ho st",
                "http://[::1",
            )
        ),
    ],
)
def test_a_wrong_section_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
