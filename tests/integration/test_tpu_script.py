"""scripts/tpu.sh with a stand-in for gcloud, and what it has its hosts do; no word of it went to Google."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
from places import ROOT

# It writes down what it was asked, and answers as the files beside it say: of the slice, one state a question. `scp`
# and `ssh` go to a folder that stands for the hosts.
GCLOUD = r"""#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\n' "$(printf '%q ' "$@")" >> "$here/asked"
case "$*" in
  *"queued-resources describe"*)
    now=$(head -n 1 "$here/states"); [ "$(wc -l < "$here/states")" = 1 ] || sed -i 1d "$here/states"
    case "$now" in
      gone) echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1 ;;
      lost) echo "ERROR: no answer" >&2; exit 1 ;;
    esac
    echo "$now" ;;
  *"projects describe"*) echo 4711 ;;
  *"get-value project"*) echo mine ;;
  *"buckets describe"*) exit 1 ;;
  *"tpu-vm scp"*) cp "$5" "$here/host" ;;
  *systemctl*) head -n 1 "$here/units"; [ "$(wc -l < "$here/units")" = 1 ] || sed -i 1d "$here/units" ;;
  *--command*) for last; do :; done; cd "$here/host" && HOME=$PWD exec bash -c "$last" ;;
esac
"""
KINDS = {
    "v4-8": ("us-central2-b", "us-central2", "tpu-ubuntu2204-base", "4 chips, about $12.88 an hour"),
    "v5litepod-8": ("us-west1-c", "us-west1", "v2-alpha-tpuv5-lite", "8 chips, about $9.60 an hour"),
    "v5p-16": ("us-east5-a", "us-east5", "v2-alpha-tpuv5", "8 chips, about $33.60 an hour"),
    "v6e-8": ("us-east1-d", "us-east1", "v2-alpha-tpuv6e", "8 chips, about $21.60 an hour"),
}


def tpu(*arguments: str, path: str = os.environ["PATH"], **variables: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "CLOUDSDK_"))}
    command = [shutil.which("bash"), ROOT / "scripts" / "tpu.sh", *arguments]
    environment = inherited | {"PATH": path} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


class Cloud:
    """The stand-ins, and a host with a .venv in which everything is installed."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.host = folder, folder / "host"
        programs = {
            "gcloud": GCLOUD,
            "journalctl": "#!/bin/bash\n",
            "sudo": '#!/usr/bin/env bash\nwhile [[ $1 != */* ]]; do shift; done\nexec "$@"\n',
        }
        environment = self.host / "viavsp_jax" / ".venv"
        (environment / "bin").mkdir(parents=True)
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (environment / "bin" / "python").write_text(
            f'#!/usr/bin/env bash\npwd >> {folder}/ran\nprintf "%q " "$@" >> {folder}/ran\n'
        )
        (environment / "bin" / "python").chmod(0o755)
        (environment / "bin" / "pip").write_text(f'#!/usr/bin/env bash\necho "$@" >> {folder}/installed\n')
        (environment / "bin" / "pip").chmod(0o755)

    def run(self, *arguments: str, states: str = "ACTIVE", units: str = "inactive", **variables: str):
        for name, lines in (("states", states), ("units", units)):
            (self.folder / name).write_text("\n".join(lines.split()) + "\n")
        (self.folder / "asked").unlink(missing_ok=True)
        return tpu(*arguments, path=f"{self.folder}:{os.environ['PATH']}", TPU_INTERVAL="0", **variables)

    def asked(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.folder / "asked").read_text().splitlines()]

    def verbs(self) -> list[str]:
        """What of the slice was asked, but its state."""
        said = [" ".join(words) for words in self.asked()]
        pattern = r"compute tpus (?:queued-resources|tpu-vm) (create|delete|scp|ssh)"
        return [match[1] for line in said if (match := re.search(pattern, line)) and "systemctl" not in line]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_dry_run_prints_is_what_is_run(cloud, kind):
    zone, region, software, price = KINDS[kind]
    options = [f"--type={kind}", "--bucket=gs://b-1", "--name=mine", "--spot"]
    dry = tpu("run", "--dry-run", *options, "--", "--mode=eval", "--config.a=x y", path="/usr/bin:/bin")
    assert dry.returncode == 0 and price in dry.stderr and "https://cloud.google.com/tpu/pricing" in dry.stderr
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    where, account = ["--zone", zone], "NUMBER-compute@developer.gserviceaccount.com"
    bucket = ["gcloud", "storage", "buckets"]
    assert [*bucket, "create", "gs://b-1", "--location", region, "--uniform-bucket-level-access"] in printed
    for role in ("objectAdmin", "legacyBucketReader"):
        rights = ["--member", f"serviceAccount:{account}", "--role", f"roles/storage.{role}"]
        assert [*bucket, "add-iam-policy-binding", "gs://b-1", *rights] in printed
    slice_ = ["--accelerator-type", kind, "--runtime-version", software, "--service-account", account, "--spot"]
    request = ["gcloud", "compute", "tpus", "queued-resources", "create", "mine", "--node-id", "mine", *where, *slice_]
    assert request in printed
    assert all(where[1] in line for line in printed if "tpus" in line)
    for verb in ("scp", "ssh"):  # the code, its installation and the run: on all hosts
        lines = [
            line for line in printed if line[1:5] == ["compute", "tpus", "tpu-vm", verb] and "systemctl" not in line[-1]
        ]
        assert lines and all("--worker all" in " ".join(line) for line in lines)
    assert printed[-1][-1].endswith(
        r"train_tpu.sh gs://b-1/llm gs://b-1/shards gs://b-1/final --mode=eval --config.a=x\ y"
    )

    done = cloud.run("run", *options, "--", "--mode=eval", "--config.a=x y", states="gone ACTIVE")
    assert done.returncode == 0, done.stderr

    def same(words: list[str]) -> str:
        return (
            re.sub(r"\S*viavsp_jax\.tgz", "TGZ", " ".join(words))
            .replace("4711", "NUMBER")
            .replace("mine --f", "PROJECT --f")
        )

    expected = [same(line[1:]) for line in printed if line[0] == "gcloud"]
    asked = list(dict.fromkeys(same(line) for line in cloud.asked()))
    assert [line for line in asked if "buckets describe" not in line] == expected


def test_a_host_gets_the_code_and_runs_it(cloud):
    done = cloud.run("run", "--bucket=gs://b-1", "--run=other", "--", "--config.seed=3", "--config.a=x $y")
    assert done.returncode == 0, done.stderr
    assert (cloud.folder / "installed").read_text().endswith(f"-e {cloud.host}/viavsp_jax[tpu]\n")
    where, words = (cloud.folder / "ran").read_text().splitlines()
    assert where == f"{cloud.host}/viavsp_jax"
    flags = shlex.split(words)
    assert flags[:2] == ["-m", "viavsp_jax.main"] and flags[-2:] == ["--config.seed=3", "--config.a=x $y"]
    assert "--workdir=gs://b-1/other" in flags and "--config.llm.path=gs://b-1/llm" in flags
    for name in (
        "viavsp_jax/main.py",
        "viavsp_jax/app/page/front.py",
        "configs/final.py",
        "convert/from_hf.py",
        "setup.py",
    ):
        assert (cloud.host / "viavsp_jax" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    ("states", "verbs"),
    [
        ("ACTIVE", ["scp", "ssh", "ssh"]),
        ("gone WAITING_FOR_RESOURCES PROVISIONING ACTIVE", ["create", "scp", "ssh", "ssh"]),
        ("SUSPENDING SUSPENDED lost CREATING ACTIVE", ["delete", "create", "scp", "ssh", "ssh"]),
        ("FAILED gone ACTIVE", ["delete", "create", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_run_makes_what_is_not_there(cloud, states, verbs):
    done = cloud.run("run", "--bucket=gs://b-1", states=states)
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == verbs


def test_a_run_that_is_watched_continues_after_a_preemption(cloud):
    """Twice it is taken away: once while it runs, once when its unit has been stopped already."""
    states = "ACTIVE ACTIVE SUSPENDED SUSPENDED CREATING ACTIVE ACTIVE SUSPENDING SUSPENDED ACTIVE ACTIVE"
    done = cloud.run("run", "--watch", "--bucket=gs://b-1", states=states, units="inactive active inactive inactive")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["scp", "ssh", "ssh", *2 * ["delete", "create", "scp", "ssh", "ssh"], "ssh"]
    assert "journalctl" in cloud.asked()[-1][-1]


def test_a_run_under_way_is_left_alone(cloud):
    done = cloud.run("run", "--bucket=gs://b-1", units="active")
    assert done.returncode == 0 and "a run is under way on viavsp" in done.stderr
    assert cloud.verbs() == []


def test_the_other_commands(cloud):
    assert cloud.run("status", states="PROVISIONING").stdout == "viavsp: PROVISIONING\n"
    assert cloud.run("status", states="gone").stdout == "viavsp: not there\n"
    assert cloud.run("status", units="active").stdout == "viavsp: ACTIVE\nactive\n"
    cloud.run("logs", TPU_NAME="other")
    assert "compute tpus tpu-vm ssh other" in " ".join(cloud.asked()[0]) and "--follow" in cloud.asked()[0][-1]
    cloud.run("delete", "--zone=us-west4-a")
    assert cloud.asked() == [
        shlex.split("compute tpus queued-resources delete viavsp --zone us-west4-a --force --quiet")
    ]
    done = cloud.run("create", "--bucket=gs://b-1", TPU_ACCOUNT="me@mine.iam.gserviceaccount.com", TPU_SPOT="1")
    assert done.returncode == 0 and cloud.asked()[-1][-3:] == [
        "--service-account",
        "me@mine.iam.gserviceaccount.com",
        "--spot",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected create, install, run, status, logs or delete, not ''"),
        (["start"], "expected create, install, run, status, logs or delete, not 'start'"),
        (["run"], "--bucket is '', expected gs:// and the name of a bucket"),
        (["run", "--bucket=gs://b/folder"], "--bucket is 'gs://b/folder', expected gs:// and the name of a bucket"),
        (["status", "--type=v3-8"], "--type is v3-8, expected v4-N, v5litepod-N, v5p-N or v6e-N"),
        (["status", "--type=v6e-2x4"], "--type is v6e-2x4, expected a number after the last -"),
        (["status", "--zone"], "unknown option --zone"),
        (["run", "--bucket=gs://b-1", "--config.seed=3"], "unknown option --config.seed=3"),
        (["logs", "--", "--mode=eval"], "logs takes no options after --"),
        (["install"], "viavsp is SUSPENDED, expected one that is ACTIVE: scripts/tpu.sh run makes it"),
    ],
)
def test_wrong_use_is_one_sentence(cloud, arguments, sentence):
    done = cloud.run(*arguments, states="SUSPENDED")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {sentence}") and done.stderr.count("error:") == 1


def test_a_state_that_is_not_known_is_no_reason_to_make_another(cloud):
    assert cloud.run("status", states="lost").returncode == 2
    done = cloud.run("run", "--bucket=gs://b-1", states="lost")
    assert done.returncode == 2 and done.stderr.endswith("error: the state of viavsp is not known\n")
    assert cloud.verbs() == []


def test_without_gcloud_it_is_named(tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = tpu("status", path=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: gcloud is not installed")


@pytest.mark.parametrize("works", [True, False])
def test_uv_fetches_a_python_where_there_is_an_old_one_only(tmp_path, works):
    """As on the images of TPU VMs, which have 3.10."""
    programs = {name: "echo False" for name in ("python3.11", "python3.12", "python3.13", "python3", "python")}
    made = 'for last; do :; done; mkdir -p "$last/bin"; for x in python pip; do ln -s /bin/true "$last/bin/$x"; done'
    programs["uv"] = f'echo "$@" > {tmp_path}/asked; {made if works else "exit 1"}'
    for name, text in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for name in ("scripts/install.sh", "setup.py", "constraints.txt"):
        (project / name).write_bytes((ROOT / name).read_bytes())
    command = ["bash", "-euc", f". {project}/scripts/install.sh; install_extra tpu"]
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (tmp_path / "asked").read_text() == f"venv --quiet --seed --python 3.11 {project}/.venv\n"
    if works:
        assert done.returncode == 0 and list((project / ".venv").glob(".installed-tpu-*"))
    else:
        assert done.returncode == 2 and "error: Python 3.11 or newer is needed, none was found" in done.stderr
