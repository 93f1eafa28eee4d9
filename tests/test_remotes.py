"""A team's own remote beside the sample's, as docs/remotes.md says: pushed from one checkout, pulled into another."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from finetune import sample_remote
from finetune.errors import InputError

pytestmark = pytest.mark.dvc

REPOSITORY = Path(__file__).parent.parent
PHOTOS = b"photographs of mine"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Clone:
    """A checkout of a repository with this one's sample remote and data.dvc, and no home folder but its own."""

    def __init__(self, root: Path, **env: str) -> None:
        self.root = root
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("AWS_", "DVC_", "HTTP"))}
        self.env = kept | {"HOME": str(root.parent), "NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true"} | env

    def git(self, *words: str) -> str:
        return self._run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)

    def dvc(self, *words: str) -> str:
        return self._run(sys.executable, "-m", "dvc", *words)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def samples(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.root)): p.read_bytes() for p in (self.root / "samples").rglob("*") if p.is_file()
        }


def asked(method: str, url: str) -> str:
    """The server's answer; no proxy and no key of the machine's is used."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.request(method, url, timeout=10)
        answer.raise_for_status()
        return answer.text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """What a user has who put photographs beside the sample data: committed but for the remote."""
    made = Clone(tmp_path_factory.mktemp("user") / "checkout")
    made.root.mkdir()
    shutil.copytree(REPOSITORY / "samples" / "dvc-remote", made.root / "samples" / "dvc-remote")
    for name in ("data.dvc", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, made.root / name)
    shutil.copytree(REPOSITORY / ".dvc", made.root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.local"))
    made.git("init", "-q")
    made.dvc("pull", "-q", "data/cifar10", "data/cifar100", "data/cub200", "data/cars196", "data/food101")
    (made.root / "data" / "mine").mkdir()
    (made.root / "data" / "mine" / "photos.zip").write_bytes(PHOTOS)
    with (made.root / "data.dvc").open("a") as data_file:
        data_file.write("- path: data/mine\n")
    made.dvc("commit", "-q", "-f", "data.dvc")
    return made


@pytest.fixture
def user(template: Clone, tmp_path: Path) -> Clone:
    shutil.copytree(template.root, tmp_path / "checkout")
    return Clone(tmp_path / "checkout", **KEYS)


@pytest.fixture
def bucket() -> Iterator[str]:
    """The address of an S3 server on loopback that has the bucket `team`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    asked("PUT", f"{url}/team")
    yield url
    server.stop()


def shared(user: Clone) -> Clone:
    """Push and commit, as docs/remotes.md says; then the checkout of a colleague who pulled."""
    before = user.samples()
    user.dvc("push", "-q", "data.dvc")
    assert user.samples() == before
    user.git("add", "-A")
    user.git("commit", "-q", "-m", "a remote of ours")
    place = user.root.parent / "colleague"
    user.git("clone", "-q", str(user.root), str(place))
    colleague = Clone(place, **KEYS)
    colleague.dvc("pull", "-q", "data.dvc")
    assert (place / "data" / "mine" / "photos.zip").read_bytes() == PHOTOS
    assert (place / "data" / "cifar10" / "cifar-10-python.tar.gz").is_file()
    assert colleague.samples() == before
    return colleague


def hashes(root: Path, dataset: str) -> set[str]:
    """Of what DVC keeps of a data set: the folder's list, and the one file that is in it."""
    outs = yaml.safe_load((root / "data.dvc").read_text())["outs"]
    listing: str = next(out["md5"] for out in outs if out["path"] == f"data/{dataset}")
    cached = root / ".dvc" / "cache" / "files" / "md5" / listing[:2] / listing[2:]
    return {listing, *(entry["md5"] for entry in yaml.safe_load(cached.read_text()))}


def test_a_folder_as_the_teams_remote_gets_the_users_data_and_no_more(user: Clone) -> None:
    team = user.root.parent / "team"
    user.dvc("remote", "add", "-q", "-d", "team", str(team))
    shared(user)
    kept = {path.parent.name + path.name for path in (team / "files" / "md5").rglob("*") if path.is_file()}
    assert kept == hashes(user.root, "mine")


def test_a_bucket_as_the_teams_remote_gets_the_users_data_and_no_more(user: Clone, bucket: str) -> None:
    user.dvc("remote", "add", "-q", "-d", "team", "s3://team/studies")
    user.dvc("remote", "modify", "-q", "team", "endpointurl", bucket)
    shared(user)
    listed = asked("GET", f"{bucket}/team?list-type=2&prefix=studies/files/md5/")
    keys = [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]
    assert {"".join(key.split("/")[-2:]) for key in keys} == hashes(user.root, "mine")


def test_without_a_remote_of_ones_own_a_push_leaves_the_users_data_here(user: Clone) -> None:
    before = user.samples()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "push"], cwd=user.root, env=user.env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "config" in done.stderr and user.samples() == before


def test_archives_in_the_place_of_a_samples_go_to_the_team_once_the_line_is_deleted(user: Clone) -> None:
    team, data_file = user.root.parent / "team", user.root / "data.dvc"
    user.dvc("remote", "add", "-q", "-d", "team", str(team))
    (user.root / "data" / "cifar10" / "mine.tar").write_bytes(PHOTOS)
    user.dvc("add", "-q", "data/cifar10")
    with pytest.raises(InputError, match=r"^data\.dvc: data/cifar10 \(\w{32}\.dir\): has `remote: sample`.*; delete"):
        sample_remote.check(user.root, data_file)
    line = "- path: data/cifar10\n  remote: sample\n"
    assert line in data_file.read_text()
    data_file.write_text(data_file.read_text().replace(line, "- path: data/cifar10\n"))
    sample_remote.check(user.root, data_file)
    before = user.samples()
    user.dvc("push", "-q", "data.dvc")
    kept = {path.parent.name + path.name for path in (team / "files" / "md5").rglob("*") if path.is_file()}
    assert user.samples() == before and hashes(user.root, "cifar10") <= kept


def test_what_data_dvc_does_not_list_is_added_once_it_does(user: Clone) -> None:
    (user.root / "data" / "cub200" / "CUB_200_2011.tgz").unlink()  # what else is listed need not be there
    (user.root / "data" / "new").mkdir()
    (user.root / "data" / "new" / "photos.zip").write_bytes(PHOTOS)
    with pytest.raises(AssertionError, match=r"bad DVC file name 'data/new\.dvc' is git-ignored"):
        user.dvc("add", "data/new")
    with (user.root / "data.dvc").open("a") as data_file:
        data_file.write("- path: data/new\n")
    user.dvc("add", "-q", "data/new")
    assert len(hashes(user.root, "new")) == 2


def test_what_the_s3_test_needs_is_locked_beside_the_rest() -> None:
    locked = [
        line for line in (REPOSITORY / "requirements-s3.lock").read_text().splitlines() if not line.startswith("#")
    ]
    names = {line.partition("==")[0] for line in locked}
    rest = {line.partition("==")[0] for line in (REPOSITORY / "requirements.lock").read_text().splitlines()}
    assert {"dvc-s3", "moto"} <= names and all("==" in line for line in locked) and not names & rest
