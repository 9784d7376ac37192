"""Many visitors of the web page at once: who is let in, whether each gets the right words, and what the server takes.

    python -m tests.stress.visitors CLIP... --model runs/demo --visitors 50 --rounds 3

Each visitor sends one of the clips, presses the button and reads what comes, as a browser does. Those who find the
queue full are told so. What each gets is held against what a visitor who was alone got for the same clip.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

import httpx

from viavsp_jax.runtime.errors import reported_to_user

AUTOMATIC = ("automatic", False, 0, 2)  # modality, noise, SNR, beams
_PATIENCE = 900  # seconds
_JSON = {"Content-Type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Page:
    """A running server."""

    address: str  # without a slash at its end
    process: subprocess.Popen
    folder: pathlib.Path  # its temporary files

    def usage(self) -> dict[str, int]:
        """Megabytes of memory, threads, open files, and files that are kept."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        memory, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("VmRSS", "Threads"))
        opened = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        kept = sum(path.is_file() for path in self.folder.glob("*/gradio/*/*"))
        return {"RSS MB": memory // 1024, "threads": threads, "open": opened, "kept": kept}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a press of the button led to: one of the two."""

    values: list | None  # those that answers.transcribe yields
    refusal: str | None  # a sentence

    @property
    def text(self) -> str | None:
        """The transcript."""
        found = self.values and re.search(r'<p class="text" lang="vi">(.*?)</p>', self.values[3])
        return re.sub("<[^>]*>", "", found[1]) if found else None  # words may be elements


@contextlib.contextmanager
def running(model: str, folder: pathlib.Path, *options: str, before: str = "") -> Iterator[Page]:
    """A server in a process of its own.

    Args:
      model: as --model.
      folder: where its temporary files go.
      options: of python -m viavsp_jax.app.
      before: code that is run first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", f"{before}\nfrom viavsp_jax.app.__main__ import main; main()"]
    process = subprocess.Popen(
        [*command, "--model", model, "--port", str(port), *options],
        stdout=subprocess.PIPE, encoding="utf-8", errors="replace",
        env=os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        if "The page is at" not in process.stdout.readline():
            raise RuntimeError(f"the page has not started, status {process.wait()}")
        yield Page(f"http://127.0.0.1:{port}", process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def send(client: httpx.Client, name: str, content: bytes) -> httpx.Response:
    """Uploads a file under a name; the answer is a list of one path, by which the server knows it."""
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def event_of(client: httpx.Client) -> int:
    """The number of the function that transcribes."""
    return events(client)["transcribe"]


def events(client: httpx.Client) -> dict[str, int]:
    """The numbers of the functions that presses call, by the name of the button."""
    config = client.get("/config").json()
    names = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
    called = [one for one in config["dependencies"] if one["backend_fn"] and one["targets"]]
    return {names[one["targets"][0][0]]: one["id"] for one in called if one["targets"][0][0] in names}


def press(
    client: httpx.Client,
    event: int,
    file: object,
    options: Sequence = AUTOMATIC,
    headers: Mapping[str, str] = _JSON,
) -> Answer:
    """Presses the button with a file as FileData, or with anything in its place."""
    session = secrets.token_hex(6)
    body = {"data": [file, None, *options], "fn_index": event, "session_hash": session}
    # Not httpx's own JSON, which knows no NaN.
    joined = client.post("/gradio_api/queue/join", content=json.dumps(body), headers=_JSON | headers)
    if joined.status_code != 200:
        return Answer(None, f"{joined.status_code} {joined.text}")
    return listen(client, session)


def listen(client: httpx.Client, session: str) -> Answer:
    """Reads what comes of a press."""
    values = None
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line else {}
            output = message.get("output") or {}
            if message.get("msg") == "process_generating" and message["success"]:
                values = output["data"]
            if message.get("msg") == "process_completed":
                values = output.get("data") if values is None else values  # all at once
                return Answer(values, None) if message["success"] else Answer(None, json.dumps(output))
    return Answer(None, "the answer broke off")


def visit(address: str, clip: pathlib.Path) -> Answer:
    """One visitor, from the upload on."""
    with httpx.Client(base_url=address, timeout=_PATIENCE) as client:
        event, sent = event_of(client), send(client, clip.name, clip.read_bytes())
        if sent.status_code != 200:
            return Answer(None, f"{sent.status_code} {sent.text}")
        return press(client, event, {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}})


def together(page: Page, clips: Sequence[pathlib.Path], count: int) -> tuple[list[Answer], dict[str, int]]:
    """So many visitors at once, who take the clips in turn: what each got, and the most that the server took."""
    peak: dict[str, int] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        visits = [pool.submit(visit, page.address, clips[number % len(clips)]) for number in range(count)]
        while not all(one.done() for one in visits):
            peak = {name: max(peak[name], value) for name, value in page.usage().items()} if peak else page.usage()
            time.sleep(0.1)
    return [one.result() for one in visits], peak


def line(name: object, *values: object) -> str:
    """Of the table."""
    return f"{name!s:>10}" + "".join(f"{value!s:>12}" for value in values)


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    clips = [pathlib.Path(clip) for clip in args.clips]
    with tempfile.TemporaryDirectory() as folder, running(args.model, pathlib.Path(folder), *args.options) as page:
        expected = {clip: visit(page.address, clip).text for clip in clips}
        print(f"{args.visitors} visitors at once, {len(set(expected.values()))} different transcripts\n")
        print(line("round", "admitted", "right", "away", "seconds", *page.usage()))
        print(line("before", "", "", "", "", *page.usage().values()))
        for number in range(args.rounds):
            start = time.monotonic()
            answers, peak = together(page, clips, args.visitors)
            spent = time.monotonic() - start
            admitted = [(answer, clips[i % len(clips)]) for i, answer in enumerate(answers) if answer.values]
            right = sum(answer.text == expected[clip] for answer, clip in admitted)
            away = collections.Counter(answer.refusal for answer in answers if answer.refusal)
            print(line(f"{number + 1} peak", len(admitted), right, sum(away.values()), f"{spent:.1f}", *peak.values()))
            time.sleep(5)
            print(line("after", "", "", "", "", *page.usage().values()))
        print("\n" + "\n".join(f"{count} in the last round were told: {sentence}" for sentence, count in away.items()))


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.visitors", description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="video or audio file")
    parser.add_argument("--model", required=True, help="as of python -m viavsp_jax.app")
    parser.add_argument("--visitors", type=int, default=50, help="at once (default 50)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of python -m viavsp_jax.app, last")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
