import contextlib
import signal

import httpx
import openai
import pytest

import processes
from processes import Backstop, Identity, Llama, Sim, eventually

# Failures in quick succession are the point of many tests; without these the endpoint would be taken out.
PATIENT = {
    "breaker": {"failures": 1000},
    "outlier": {"max_ejected": "0%"},
    "health": {"interval": "500ms", "slow_start": "0s"},
    "retry": {"attempts": 2, "backoff": "10ms"},
    "timeouts": {"first_token": "5s", "inter_token": "5s", "response": "10s"},
    # How streams end that can't be carried on.
    "resume": {"attempts": 0},
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for process in processes.started[-6:]:
            lines = process.said().splitlines()[-40:]
            report.sections.append((f"log of {process.name}", "\n".join(lines)))
    return report


@pytest.fixture
def launch(tmp_path):
    """Starts processes that end with the test, in the opposite order."""
    with contextlib.ExitStack() as stack:

        class Launch:
            @staticmethod
            def sim(*options, **named) -> Sim:
                return stack.enter_context(Sim(tmp_path, *options, **named))

            @staticmethod
            def backstop(*servers, **settings) -> Backstop:
                return stack.enter_context(Backstop(tmp_path, list(servers), **{**PATIENT, **settings}))

        yield Launch


@pytest.fixture
def identity(tmp_path) -> Identity:
    """A certificate for this machine, and the authority that vouches for it."""
    return Identity(tmp_path / "identity")


@pytest.fixture
def other_identity(tmp_path) -> Identity:
    return Identity(tmp_path / "other")


@pytest.fixture
def sim(launch) -> Sim:
    return launch.sim()


@pytest.fixture
def backstop(launch, sim) -> Backstop:
    return launch.backstop(sim)


@pytest.fixture
def connect():
    """The official SDK, pointed at something. It tries again as often as it does for anybody."""
    with contextlib.ExitStack() as stack:

        def connect(server, **options) -> openai.OpenAI:
            options = {"api_key": "unused", "timeout": 60, **options}
            return stack.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", **options))

        yield connect


@pytest.fixture
def client(connect, backstop) -> openai.OpenAI:
    return connect(backstop)


@pytest.fixture
def direct(connect, sim) -> openai.OpenAI:
    """Past Backstop, for what the answer ought to be."""
    return connect(sim)


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """Two real servers, alive and well when a test gets them."""
    folder = tmp_path_factory.mktemp("llama")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Llama(folder, name)) for name in ("llama-a", "llama-b")]
        yield [server.ready() for server in servers]


@pytest.fixture
def llama_pair(llamas):
    for server in llamas:
        if not server.alive:
            server.restart()
    yield llamas
    for server in llamas:
        if server.alive:
            server.signal(signal.SIGCONT)
            eventually(lambda: server.metric("requests_processing") == 0, 60, f"`{server.name}` is idle")


@pytest.fixture
def http():
    with httpx.Client(timeout=60) as client:
        yield client
