"""What a process finds around it: nothing is imported from where a person stands, loopback needs no proxy, bad folders are found early."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokenloom.configs.schema import ClusterConfig
from tokenloom.flows import prefect_api, sweep
from tokenloom.flows.cli import main as cli
from tokenloom.flows.workspace import Workspace
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime import cluster, surroundings
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store import records
from tokenloom.tasks.store.artifacts import StepSpec, Store
from tokenloom.tasks.store.storage import Storage

HERE = Path(__file__).parents[2]
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables that these tests set."""
    names = [*VARIABLES, *map(str.upper, VARIABLES), "PYTHONPATH", "RAY_TMPDIR", "TMPDIR", "TEMP", "TMP", "TOKENLOOM_ROOT"]
    for name in [*names, "TOKENLOOM_STORE", "MLFLOW_TRACKING_URI", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]:
        monkeypatch.setenv(name, "")  # so that what settle sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first request, for later tests too


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person stands: modules of theirs with the names of the standard library's and of ours; none may be imported."""
    folder = tmp_path / "mine"
    for name in ("random", "types", "numpy", "models", "tasks", "prefect", "sitecustomize"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("import os; os.write(2, b'TRAPPED'); os._exit(9)")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("path", [None, "", ".", ":/nonexistent", "/nonexistent:"])
def test_a_server_imports_nothing_from_where_a_person_stands(
    path: str | None, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    surroundings.settle()
    log = tmp_path / "root" / "logs" / "server.log"
    log.parent.mkdir(parents=True)
    with prefect_api.process(
        [sys.executable, "-m", "timeit", "-n1", "-r1", "import random, types, os; print(os.getcwd())"], str(log)
    ) as started:
        assert started.wait(60) == 0, log.read_text()
    stood = Path(log.read_text().splitlines()[0])
    assert stood.is_relative_to(tmp_path / "root")
    assert not list(stood.iterdir())


def test_relative_folders_of_the_import_path_stay_where_they_were(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"src::.:{trap.parent}")
    surroundings.settle()
    assert os.environ["PYTHONPATH"].split(":") == [str(trap / "src"), str(trap.parent)]


def test_the_module_leaves_where_it_was_started(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(trap), ".", "/elsewhere"])
    surroundings.leave_here()
    assert sys.path == ["/elsewhere"]
    monkeypatch.setattr(sys, "path", [str(trap), "/elsewhere"])
    monkeypatch.setenv("PYTHONPATH", str(trap))
    surroundings.leave_here()
    assert sys.path == [str(trap), "/elsewhere"]  # it was asked for by its whole name


def test_ray_and_the_local_api_start_elsewhere_too(trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.client.orchestration

    stood: list[str] = []

    def init(**_: Any) -> Any:
        stood.append(os.getcwd())
        return SimpleNamespace(address_info={"session_dir": str(tmp_path)}, dashboard_url=None)

    def client(**_: Any) -> Any:
        stood.append(os.getcwd())
        raise RuntimeError

    monkeypatch.setattr(prefect.client.orchestration, "get_client", client)
    cluster._start(SimpleNamespace(init=init, shutdown=lambda: None), ClusterConfig(), tmp_path / "root")
    prefect_api.reachable(lambda _: None, tmp_path / "root")
    assert [Path(each).is_relative_to(tmp_path / "root") and not os.listdir(each) for each in stood] == [True, True]
    assert os.getcwd() == str(trap)
    assert os.environ["PYTHONSAFEPATH"] == "1"  # of what Ray and Prefect start


def test_a_trial_imports_nothing_from_where_a_person_stands(trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    made = sweep.opened("smoke_raster", ["generator.train.optimizer.lr=1e-5..1e-1:log"], None, str(tmp_path / "root"), None, None, True)
    made.folder.mkdir(parents=True)
    start, trial = subprocess.Popen, SimpleNamespace(number=0, set_user_attr=lambda *_: None, suggest_float=lambda *_, **__: 1e-3)

    def popen(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "tokenloom.flows.cli.main"]
        return start([command[0], "-c", "import random, types, os; print(os.getcwd())"], **options)

    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    begun = made._begin(trial)
    assert begun.process.wait(60) == 0, begun.out.with_suffix(".log").read_text()
    assert begun.out.read_text().splitlines()[0] == str(trap)  # so that relative paths of its run file hold


def test_no_other_place_starts_python() -> None:
    starters = set()
    for layer in ("flows", "tasks", "configs", "models"):
        for path in (HERE / layer).rglob("*.py"):
            if re.search(r"\bPopen\(|\bos\.(exec|spawn|posix_spawn|system|popen)|create_subprocess", path.read_text()):
                starters.add(path.relative_to(HERE).as_posix())
    assert starters == {"flows/prefect_api.py", "flows/sweep.py"}


@pytest.mark.long
@pytest.mark.ray
def test_workers_of_ray_import_nothing_from_where_a_person_stands(trap: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tokenloom.tasks.runtime import surroundings
from tokenloom.tasks.runtime.cluster import session
from tokenloom.configs.schema import ClusterConfig
surroundings.settle()
with session(ClusterConfig(), Path({str(tmp_path / "root")!r})) as current:
    def work():
        import random, types, numpy, os, ray.train
        return [*sys.path, os.getcwd()]
    print(current.ray.get(current.ray.remote(work).remote()))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=trap, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TRAPPED" not in done.stderr
    assert repr(str(trap)) not in done.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "intranet"}, "intranet,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intranet, localhost"}, "intranet,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
        ({"NO_PROXY": "a,*"}, "*"),
    ],
)
def test_loopback_needs_no_proxy(given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"), "http://nobody.invalid:3128")
    for name, value in {**given, **proxies}.items():
        monkeypatch.setenv(name, value)
    surroundings.settle()
    surroundings.settle()
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (expected, expected)
    import httpx
    import requests.utils

    for host in surroundings.LOOPBACK:
        url = f"http://[{host}]:4200/api" if ":" in host else f"http://{host}:4200/api"
        assert not requests.utils.get_environ_proxies(url) or ":" in host  # it takes no IPv6 address
        assert httpx.Client()._transport_for_url(httpx.URL(url))._pool.__class__.__name__ == "ConnectionPool"
        assert urllib.request.proxy_bypass(host)
    with pytest.raises(OSError, match="refused"):  # not the proxy's name that is unknown
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=5)


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:7890", "socks://127.0.0.1:7890", "SOCKS5H://127.0.0.1:7890"])
@pytest.mark.parametrize("name", ["all_proxy", "ALL_PROXY"])
def test_a_proxy_for_everything_that_a_client_cannot_speak_to_is_left_out(address: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setenv(name, address)
    surroundings.settle()
    httpx.Client().close()


def test_a_message_names_the_proxy_and_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    assert surroundings.proxied("http://mlflow:5000") == ""
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy:3128")
    surroundings.settle()
    said = surroundings.proxied("http://mlflow:5000")
    assert all(each in said for each in ("proxy:3128", "http_proxy", "no_proxy", "mlflow"))
    assert "secret" not in said
    assert surroundings.proxied("https://mlflow") == ""
    assert surroundings.proxied("http://localhost:5000") == ""
    monkeypatch.setenv("no_proxy", "mlflow")
    assert surroundings.proxied("http://mlflow:5000") == ""


def test_streams_that_were_closed_take_nothing_of_other_files(tmp_path: Path) -> None:
    code = (
        "from tokenloom.tasks.runtime.surroundings import open_streams; open_streams(); f = open('file', 'w'); "
        "import sys; print('lost'); print('lost', file=sys.stderr); f.write(f'{f.fileno()} {sys.stdin.read()!r}')"
    )
    closing = f'exec {sys.executable} -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", closing, "sh", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    number, read = (tmp_path / "file").read_text().split()
    assert (int(number) > 2, read) == (True, "''")


@pytest.mark.parametrize("name", ["a?b", "a\nb", "a\x7fb"])
def test_a_root_that_no_database_address_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--root .* cannot hold"):
        Workspace.open(root=str(tmp_path / name))
    assert not (tmp_path / name).exists()


BAD = [
    ("TMPDIR", "/nonexistent/tmp", "there is no such folder"),
    ("TMPDIR", __file__, "is not a folder"),
    ("TEMP", "/nonexistent/tmp", "there is no such folder"),
    ("RAY_TMPDIR", "/nonexistent", "there is no such folder"),
    ("RAY_TMPDIR", "/" + "a" * 60, "sockets need a folder of at most"),
    ("SSL_CERT_FILE", "/nonexistent.pem", "there is no such file"),
    ("SSL_CERT_DIR", "/nonexistent", "there is no such folder"),
    ("REQUESTS_CA_BUNDLE", "/nonexistent.pem", "there is no such file"),
    ("MLFLOW_TRACKING_URI", "./mlruns", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "file:///x/mlruns", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "foo://host", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "databricks", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "sqlite:///x/a?b.db", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "sqlite://", "no address of tracking"),
    ("MLFLOW_TRACKING_URI", "sqlite:////nonexistent/x.db", "there is no folder"),
    ("MLFLOW_TRACKING_URI", f"sqlite:///{__file__}", "is no SQLite database"),
]


@pytest.mark.parametrize(
    ("command", "variable", "value", "said"),
    [
        *(("run smoke_var", *bad) for bad in BAD),
        *((other, *BAD[at]) for other in ("serve smoke_var --cron", "ui", "doctor") for at in (0, 5, 10)),
    ],
)
def test_bad_surroundings_are_one_message_before_work(
    command: str, variable: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    arguments = [*command.split(), *(["0 3 * * *"] if "--cron" in command else []), "--root", str(tmp_path / "root")]
    code = cli.code_of(arguments)
    out, err = capsys.readouterr()
    assert code == (1 if command == "doctor" else 2), err
    bad = [line for line in out.splitlines() if line.startswith("BAD")] if command == "doctor" else err.splitlines()
    assert len(bad) == 1, bad
    assert variable in bad[0] or "tracking" in bad[0]
    assert said in bad[0]
    assert command == "doctor" or not (tmp_path / "root" / "store").exists()


@pytest.mark.parametrize("what", ["root", "TMPDIR"])
def test_a_full_disk_is_found_before_work(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20) if str(path).startswith(str(full)) else real(path))
    monkeypatch.setenv("TMPDIR", str(full if what == "TMPDIR" else tmp_path))
    assert cli.code_of(["run", "smoke_var", "--root", str((full if what == "root" else tmp_path) / "x")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{what}" in said[0]
    assert "1 MB are free there" in said[0]


@pytest.mark.parametrize("name", ["a" * 50, "with blank", "what?", "ha#sh", "per%20cent", "ünï"])
def test_ray_gets_a_short_plain_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", name)  # relative, as well
    surroundings.settle()
    assert os.environ["TMPDIR"] == str(tmp_path / name)
    assert surroundings.check_temporary() == "/tmp"
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    longest = f"{os.environ['RAY_TMPDIR']}/ray/session_2026-11-29_05-10-00_123456_4194304/sockets/plasma_store"
    assert len(longest) < 108


def test_a_short_plain_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert surroundings.check_temporary() == "/var/tmp"
    assert "RAY_TMPDIR" not in os.environ
    longest = f"/{'a' * (surroundings.LONGEST_TEMPORARY - 1)}/ray/session_2026-11-29_05-10-00_123456_4194304/sockets/plasma_store"
    assert len(longest) < 108


def test_a_folder_that_is_gone_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("PYTHONPATH", "src:/x")
    monkeypatch.setenv("TMPDIR", "t")
    surroundings.settle()
    surroundings.leave_here()
    assert cli.code_of(["runs", "--root", str(tmp_path / "root")]) == 2
    assert "the folder where you stand is gone" in capsys.readouterr().err


def test_a_schedule_on_a_server_that_is_away_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert cli.code_of(["serve", "smoke_var", "--cron", "0 3 * * *", "--root", str(tmp_path / "root")]) == 2
    assert "PREFECT_API_URL='http://127.0.0.1:9/api': no answer" in capsys.readouterr().err


def test_the_record_names_the_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    file = tmp_path / "tasks" / "store" / "records.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(records, "__file__", str(file))
    assert records.code_commit.__wrapped__() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    monkeypatch.setenv("GIT_DIR", str(HERE / ".git"))  # as within a hook
    commit = records.code_commit.__wrapped__()
    monkeypatch.delenv("GIT_DIR")
    assert commit == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert records.code_commit.__wrapped__() == f"{commit}+changes"


@pytest.mark.parametrize("command", ["runs", "show toy", "plan smoke_var", "methods"])
def test_a_root_that_can_only_be_read_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    step = StepSpec("train", 1, "tokenizer", "toy", {"a": 1})
    Store(str(root / "store"), root).execute(step, lambda work: work.put("note.txt", b"hello") and {"train": 3})
    before = sorted(root.rglob("*"))

    def refuse(path: Path, *_: Any, **options: Any) -> None:
        if not (options.get("exist_ok") and path.is_dir()):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("TOKENLOOM_ROOT", str(root))
    assert cli.code_of(command.split()) == 0, capsys.readouterr().err
    assert capsys.readouterr().err == ""
    assert sorted(root.rglob("*")) == before


def test_a_root_that_can_only_be_read_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, _: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert cli.code_of(["run", "smoke_var", "--root", str(tmp_path / "root")]) == 2
    assert re.search(r"--root '\S+': cannot be written: Read-only file system", capsys.readouterr().err)


@pytest.mark.long
@pytest.mark.slow
def test_the_pages_open_where_modules_lie_about_and_proxies_are_set(trap: Path, tmp_path: Path) -> None:
    """Both servers, asked over loopback; the proxies lead nowhere."""
    root = tmp_path / "ha#sh and blank%20"
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy"), "http://127.0.0.1:9") | {"ALL_PROXY": "socks5://127.0.0.1:9"}
    command = [str(Path(sys.executable).parent / "tokenloom"), "ui", "--json", "--root", str(root)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=trap, env=os.environ | proxies)
    try:
        assert started.stdout is not None
        lines = [started.stdout.readline() for _ in range(4)]
        addresses = json.loads("".join(lines))
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for address, health in ((addresses["mlflow"], "/health"), (addresses["prefect"], "/api/health")):
            assert plain.open(address + health, timeout=20).status == 200
    finally:
        started.terminate()
        started.wait(60)
    assert (root / "mlflow.db").is_file()
    assert not any("TRAPPED" in log.read_text() for log in (root / "logs").glob("*.log"))


def test_variables_that_hold_a_path_mean_the_same_to_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PREFECT_HOME": "p",
        "RAY_TMPDIR": "../r",
        "AWS_CONFIG_FILE": "~/.aws/config",
        "SSL_CERT_FILE": "/etc/x.pem",
    }.items():
        monkeypatch.setenv(name, value)
    surroundings.settle()
    made = [os.environ[name] for name in ("PREFECT_HOME", "RAY_TMPDIR", "AWS_CONFIG_FILE", "SSL_CERT_FILE")]
    assert made == [str(tmp_path / "p"), str(tmp_path.parent / "r"), "~/.aws/config", "/etc/x.pem"]


def test_a_root_that_is_too_long_for_a_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.code_of(["runs", "--root", str(tmp_path / ("a" * 200) / ("b" * 200))]) == 2
    assert "its path has" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_that_a_terminal_has_no_letters_for_are_shown_all_the_same() -> None:
    code = "from tokenloom.tasks.runtime.surroundings import open_streams; open_streams(); print('ünï …')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, r"\xfcn\xef \u2026"), done.stderr


@pytest.mark.parametrize("uri", ["s3://bucket/x", "local"])
def test_a_store_that_cannot_be_reached_names_the_proxy(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)

    def broken() -> None:
        raise OSError("timed out: no such thing")

    monkeypatch.setattr("tokenloom.tasks.store.storage.retry", lambda call, *_: call())
    with pytest.raises(StepError) as caught:
        Storage(uri if "://" in uri else str(tmp_path))._do("read", "x", broken, broken)
    assert ("proxy:3128 (https_proxy)" in str(caught.value)) == (uri != "local")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("name", "field"), [("PREFECT_SERVER_API_PORT", "port"), ("PREFECT_LOGGING_LEVEL", "level")])
def test_settings_of_prefect_that_it_refuses_are_one_message(
    name: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import prefect.settings  # noqa: F401 - before the variable is set, which other tests in this process shall not meet

    monkeypatch.setenv(name, "nothing such")
    assert cli.code_of(["run", "smoke_var", "--root", str(tmp_path / "root")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tokenloom: Prefect's settings cannot be used: ")
    assert f"{field}='nothing such'" in said.replace("NOTHING SUCH", "nothing such")
    assert len(said.splitlines()) == 1


def test_pictures_do_not_follow_a_person_s_settings_of_matplotlib() -> None:
    import matplotlib

    from tokenloom.tasks.evaluation import plots

    given = {"generator": {"loss": ([0, 1, 2], [3.0, 2.0, 1.0])}}
    before = plots.curves(given)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20.0}):
        assert plots.curves(given) == before
