"""From a standby to the leader, and back: what is followed, and that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controlplane.client.access import Access, fixed_access
from controlplane.client.following import MOST_HOPS, Leader
from controlplane.client.reader import Reader
from controlplane.client.sync import SyncLoop
from controlplane.core.errors import InvalidInput, NotLeader, Unavailable

GIVEN, SECURE = "http://service:8080", "https://service:8443"


@pytest.mark.parametrize(
    ("given", "location", "followed"),
    [
        (GIVEN, "http://10.0.0.7:8080", "http://10.0.0.7:8080"),
        (GIVEN, "http://10.0.0.7:8080/", "http://10.0.0.7:8080"),
        (GIVEN, "http://[fd00::7]:8080", "http://[fd00::7]:8080"),
        (GIVEN, "https://leader", "https://leader"),
        (SECURE, "https://leader", "https://leader"),
        (SECURE, "http://leader", None),
        (GIVEN, "http://user:password@elsewhere", None),
        (GIVEN, "ftp://leader", None),
        (GIVEN, "file:///etc/passwd", None),
        (GIVEN, "/v1/status", None),
        (GIVEN, "//leader", None),
        (GIVEN, "http://", None),
        (GIVEN, "http://leader:port", None),
        (GIVEN, "http://[broken", None),
        (GIVEN, GIVEN, None),
        (GIVEN, "", None),
        (GIVEN, None, None),
    ],
)
def test_what_is_followed(given: str, location: str | None, followed: str | None) -> None:
    leader = Leader()
    assert leader.url(given) == given
    assert leader.follow(location) is (followed is not None)
    assert leader.url(given) == (followed or given)


def test_a_leader_is_remembered_until_it_fails_or_everything_is_configured_anew() -> None:
    leader = Leader()
    leader.url(GIVEN)
    leader.follow("http://leader")
    assert leader.url(GIVEN) == "http://leader"
    leader.failed()
    assert leader.url(GIVEN) == GIVEN
    leader.follow("http://leader")
    assert leader.url("http://another") == "http://another"


def test_the_token_is_read_at_each_call(tmp_path: Path) -> None:
    file = tmp_path / "token"
    access = fixed_access("http://controller:8080/", file)
    with pytest.raises(Unavailable, match="--token-file"):
        access()
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        assert access() == Access(url="http://controller:8080", token=token)
    file.write_text("\n")
    with pytest.raises(Unavailable, match="empty"):
        access()


@pytest.mark.parametrize("url", ["", "controller:8080", "ftp://controller", "http://", "http://c:port", "http://[x"])
def test_what_is_no_url_is_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidInput, match="http://HOST:PORT"):
        fixed_access(url, tmp_path / "token")


class Controller:
    """Answers as it is told to; `leader`: it stands by, and names that one."""

    def __init__(self) -> None:
        self.leader: str | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.tokens: list[str] = []
        self.url = ""

    async def answer(self, request: Request) -> Response:
        self.tokens.append(request.headers["authorization"])
        if self.leader is not None:
            error = '{"error": {"code": "NOT_LEADER", "message": "another leads"}}'
            return Response(error, status_code=421, headers={"location": self.leader} if self.leader else {})
        await asyncio.sleep(0.01)
        return Response("7", status_code=self.status, headers=self.headers)

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Controller]:
        with socket.create_server(("127.0.0.1", port)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            app = Starlette(routes=[Route("/sync", self.answer, methods=["GET", "POST"])])
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            task = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield self
            finally:
                server.should_exit = server.force_exit = True
                await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def reporting(url: str, *, poked: bool = False) -> AsyncIterator[list[int]]:
    """The orders that a reporter takes from the controller at `url`. `poked`: it always has news."""
    taken: list[int] = []

    async def take(order: int) -> None:
        taken.append(order)

    loop = SyncLoop(
        path="/sync",
        access=lambda: Access(url=url, token="secret"),
        report=lambda: 1,
        apply=take,
        report_type=int,
        order_type=int,
    )

    async def poke() -> None:
        while True:
            loop.poke()
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(each) for each in (loop.run(), *([poke()] if poked else []))]
    try:
        yield taken
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_a_reporter_follows_and_stays_with_the_leader() -> None:
    async with Controller().serve() as standby, Controller().serve() as leader:
        standby.leader = leader.url
        async with reporting(standby.url) as taken:
            await until(lambda: len(taken) > 5)
        assert len(standby.tokens) == 1, "it is asked once"
        assert set(leader.tokens) == {"Bearer secret"}


async def test_a_reporter_goes_back_when_the_leader_fails_and_follows_the_next() -> None:
    async with Controller().serve() as service, contextlib.AsyncExitStack() as first:
        service.leader = (await first.enter_async_context(Controller().serve())).url
        async with reporting(service.url) as taken:
            await until(lambda: taken)
            await first.aclose()
            async with Controller().serve() as second:
                service.leader = second.url
                await until(lambda: len(second.tokens) > 3)


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_a_leader_that_refuses_is_left(status: int) -> None:
    async with Controller().serve() as standby, Controller().serve() as leader:
        standby.leader = leader.url
        async with reporting(standby.url) as taken:
            await until(lambda: taken)
            leader.status, leader.headers = status, {"retry-after": "0"}
            asked = len(standby.tokens)
            await until(lambda: len(standby.tokens) > asked)


async def test_standbys_that_name_each_other_are_not_followed_for_ever() -> None:
    async with Controller().serve() as one, Controller().serve() as other:
        one.leader, other.leader = other.url, one.url
        async with reporting(one.url) as taken:
            await until(lambda: len(one.tokens) >= 6)
            calls = len(one.tokens) + len(other.tokens)
            await asyncio.sleep(0.5)
            more = len(one.tokens) + len(other.tokens) - calls
            assert more <= 5 * (MOST_HOPS + 1), "there is a pause after each call that ends nowhere"
            other.leader = None
            await until(lambda: taken)


async def test_one_that_names_nobody_or_itself_is_asked_again() -> None:
    async with Controller().serve() as only:
        only.leader = ""
        async with reporting(only.url) as taken:
            await until(lambda: len(only.tokens) > 1)
            only.leader = only.url
            asked = len(only.tokens)
            await until(lambda: len(only.tokens) > asked)
            only.leader = None
            await until(lambda: taken)


async def test_the_pause_that_a_controller_asks_for_is_kept() -> None:
    async with Controller().serve() as controller:
        controller.status, controller.headers = 503, {"retry-after": "3"}
        async with reporting(controller.url):
            await until(lambda: controller.tokens)
            await asyncio.sleep(1.0)
        assert len(controller.tokens) == 1


async def test_news_do_not_shorten_the_pause_after_a_failure() -> None:
    async with Controller().serve() as controller:
        controller.status, controller.headers = 503, {"retry-after": "3"}
        async with reporting(controller.url, poked=True):
            await until(lambda: controller.tokens)
            await asyncio.sleep(1.0)
        assert len(controller.tokens) == 1


async def test_who_always_has_news_gets_through_all_the_same() -> None:
    """An answer takes twice as long as the next news."""
    async with Controller().serve() as controller, reporting(controller.url, poked=True) as taken:
        await until(lambda: len(taken) > 5)


async def test_people_are_led_to_the_leader_too() -> None:
    async with Controller().serve() as standby, Controller().serve() as leader:
        standby.leader = leader.url
        with Reader(Access(url=standby.url, token="secret")) as reader:
            for _ in range(3):
                assert await asyncio.to_thread(reader.get, "/sync") == 7
        assert len(standby.tokens) == 1
        leader.leader = standby.url
        with Reader(Access(url=standby.url, token="secret")) as reader, pytest.raises(NotLeader):
            await asyncio.to_thread(reader.get, "/sync")
