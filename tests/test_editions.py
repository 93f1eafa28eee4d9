"""Studies put in place and started: what is kept elsewhere may be replaced, what is not may not."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock

from finetune import data_version, datasets, dvc_process, editions, params, sample_remote, workflow
from finetune.cli import cli
from finetune.errors import InputError
from finetune.study import Layout

REPOSITORY = Path(__file__).parent.parent
SETS = ("cifar10", "own")
PARAMS = "# why\nstudy: {{name: {}, edition: any}} # which\ntraining:\n  lr: {} # Adam's\n"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def folder_md5(files: dict[str, bytes]) -> str:
    listed = [{"md5": md5(content), "relpath": name} for name, content in sorted(files.items())]
    return md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"


def data_file(version: str, comment: str = "", **more: str) -> str:
    outs = [{"path": f"data/{name}", "md5": folder_md5(files(name, version)), "hash": "md5", **more} for name in SETS]
    return comment + yaml.safe_dump({"outs": outs}, sort_keys=False)


def files(name: str, version: str) -> dict[str, bytes]:
    return {"a.tar": f"{name} {version}".encode(), "more/b.mat": f"b {name} {version}".encode()}


def run(root: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(root: Path, *words: str) -> str:
    return run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words)


def dvc(root: Path, *words: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *words)


def lay(root: Path, version: str, *names: str) -> None:
    for name in names or SETS:
        for file, content in files(name, version).items():
            place = root / "data" / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.write_bytes(content)


def lying(root: Path) -> dict[str, bytes]:
    found = (path for path in (root / "data").rglob("*") if path.is_file())
    return {path.relative_to(root / "data").as_posix(): path.read_bytes() for path in found}


def version(name: str, *of: str) -> dict[str, bytes]:
    return {f"{one}/{file}": content for one in of or SETS for file, content in files(one, name).items()}


def used(root: Path, name: str) -> list[str]:
    """What `use` says, but for how long DVC has been at work, which depends on the machine."""
    said: list[str] = []
    editions.use(root, name, said.append)
    return [line for line in said if " is at work, " not in line]


def refusal(root: Path, name: str) -> str:
    """The sentence with which `use` refuses, having changed neither the two files nor data/."""
    before = [(root / file).read_bytes() for file in ("params.yaml", "data.dvc") if (root / file).exists()], lying(root)
    with pytest.raises(InputError) as caught:
        editions.use(root, name, print)
    after = [(root / file).read_bytes() for file in ("params.yaml", "data.dvc") if (root / file).exists()], lying(root)
    assert before == after
    return str(caught.value)


def make(root: Path) -> Path:
    (root / "studies").mkdir()
    for name, lr in (("small", 1), ("large", 2), ("bare", 3)):
        (root / "studies" / f"{name}.yaml").write_text(PARAMS.format(name, lr))
        if name != "bare":
            (root / "studies" / f"{name}.data.yaml").write_text(data_file(name))
    shutil.copy(root / "studies" / "small.yaml", root / "params.yaml")
    shutil.copy(root / "studies" / "small.data.yaml", root / "data.dvc")
    (root / ".gitignore").write_text("/data/*\n/.finetune/\n")
    git(root, "init", "-q")
    return root


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "state")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A git repository in which study `small` is committed and in place, with nothing in data/. No DVC."""
    commit(make(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make(tmp_path_factory.mktemp("template"))
    (root / ".dvcignore").write_text("/data/*/.*\n")
    dvc(root, "init", "-q")
    dvc(root, "config", "core.analytics", "false")
    lay(root, "small")
    dvc(root, "commit", "-q", "-f", "data.dvc")
    commit(root)
    return root


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Path:
    """The same with DVC, study `small`'s data in data/ and in DVC's cache, data.dvc with the sizes that DVC adds."""
    return shutil.copytree(template, tmp_path / "checkout", symlinks=True)


# What is in the repository


def test_the_sample_study_is_the_one_in_place() -> None:
    assert (REPOSITORY / "studies" / "sample.yaml").read_text() == (REPOSITORY / "params.yaml").read_text()
    assert (REPOSITORY / "studies" / "sample.data.yaml").read_text() == (REPOSITORY / "data.dvc").read_text()


@pytest.mark.parametrize("name", editions.names(REPOSITORY))
def test_every_study_is_valid_and_bears_its_files_name(name: str) -> None:
    assert params.load(editions.file_of(REPOSITORY, name)).study.name == name


def test_the_seed_reports_data_are_the_official_archives() -> None:
    outs = yaml.safe_load((REPOSITORY / "studies" / "seed-report.data.yaml").read_text())["outs"]
    assert [out["path"] for out in outs] == [
        f"data/{name}" for name in ("cifar10", "cifar100", "cub200", "cars196", "food101")
    ]
    for out in outs:
        official = datasets.load(Path(out["path"]).name).editions["official"].md5
        listed = [{"md5": official[name], "relpath": name} for name in sorted(official)]
        assert out["md5"] == md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"
        assert out["nfiles"] == len(official) and "remote" not in out


def test_the_seed_reports_recipe_is_the_reports() -> None:
    study = params.load(REPOSITORY / "studies" / "seed-report.yaml")
    assert (study.study.edition, study.backbone.source, study.prepare.short_side) == ("official", "torchvision", 256)
    recipe = study.training
    assert (recipe.image_size, recipe.weight_decay, recipe.crop_pct, recipe.device) == (224, 1e-4, 224 / 256, "cuda")
    assert 40 <= recipe.epochs <= 50 and 3e-4 <= recipe.lr <= 1e-3 and 0.9 <= recipe.schedule.gamma <= 0.95
    assert (recipe.augmentation.name, recipe.augmentation.scale) == ("random_resized_crop", (0.08, 1.0))


def test_the_samples_remote_holds_the_sample_editions_archives_and_nothing_else() -> None:
    expected = set()
    for name in datasets.names():
        sample = datasets.load(name).editions["sample"].md5
        listed = [{"md5": sample[file], "relpath": file} for file in sorted(sample)]
        expected |= {md5(json.dumps(listed, sort_keys=True).encode()) + ".dir", *sample.values()}
    remote = REPOSITORY / "samples" / "dvc-remote"
    found = {path.relative_to(remote).as_posix() for path in remote.rglob("*") if path.is_file()}
    assert found == {f"files/md5/{hashed[:2]}/{hashed[2:]}" for hashed in expected}
    for file in (REPOSITORY / "data.dvc", *(REPOSITORY / "studies").glob("*.data.yaml")):
        sample_remote.check(REPOSITORY, file)


# Edits


@pytest.fixture
def no_data(plain: Path) -> Path:
    """Without lists of data, so that nothing but params.yaml is at stake."""
    for file in (plain / "studies").glob("*.data.yaml"):
        file.unlink()
    return plain


def test_a_study_without_a_data_file_leaves_data_dvc(plain: Path) -> None:
    (plain / "data.dvc").write_text("mine\n")
    said = used(plain, "bare")
    assert (plain / "params.yaml").read_text() == PARAMS.format("bare", 3)
    assert (plain / "data.dvc").read_text() == "mine\n"
    assert said[0].startswith("study bare: params.yaml is in place; data.dvc stays") and "make study" in said[1]


def test_uncommitted_edits_of_params_are_not_replaced(plain: Path) -> None:
    (plain / "params.yaml").write_text(PARAMS.format("small", 9))
    message = refusal(plain, "bare")
    assert message.startswith(
        "params.yaml: has edits that neither git's last commit nor a file under studies/ has; keep"
    )
    git(plain, "add", "params.yaml")
    assert refusal(plain, "bare") == message


def test_an_edited_comment_and_an_edited_name_are_edits(no_data: Path) -> None:
    for text in (PARAMS.format("small", 1).replace("# why", "# wherefore"), PARAMS.format("other", 1)):
        (no_data / "params.yaml").write_text(text)
        assert "params.yaml: has edits" in refusal(no_data, "bare")


def test_committed_params_are_replaced(no_data: Path) -> None:
    (no_data / "params.yaml").write_text(PARAMS.format("mine", 9))
    commit(no_data)
    used(no_data, "large")
    assert (no_data / "params.yaml").read_text() == PARAMS.format("large", 2)


def test_params_that_are_a_studys_are_replaced_though_git_has_others(no_data: Path) -> None:
    used(no_data, "large")
    used(no_data, "bare")
    assert (no_data / "params.yaml").read_text() == PARAMS.format("bare", 3)


def test_untracked_params_are_not_replaced(no_data: Path) -> None:
    git(no_data, "rm", "-q", "--cached", "params.yaml")
    git(no_data, "commit", "-q", "-m", "untracked")
    (no_data / "params.yaml").write_text(PARAMS.format("small", 9))
    assert "params.yaml: has edits" in refusal(no_data, "bare")


def test_params_that_are_gone_are_put_back(no_data: Path) -> None:
    (no_data / "params.yaml").unlink()
    used(no_data, "small")
    assert (no_data / "params.yaml").read_text() == PARAMS.format("small", 1)


def test_edits_kept_as_a_new_study_are_replaced(no_data: Path) -> None:
    (no_data / "params.yaml").write_text(PARAMS.format("small", 9))
    editions.new(no_data, "mine", say=print)
    used(no_data, "large")
    assert (no_data / "studies" / "mine.yaml").read_text() == PARAMS.format("mine", 9)


def test_uncommitted_edits_of_the_data_file_are_not_replaced(plain: Path) -> None:
    for text in (
        "outs:\n- path: data/own\n",
        data_file("small", "# mine\n"),
        "outs: [",
        data_file("small", remote="x"),
    ):
        (plain / "data.dvc").write_text(text)
        assert refusal(plain, "large").startswith("data.dvc: has edits that neither git's")


def test_what_dvc_adds_to_the_data_file_is_no_edit_and_stays(plain: Path) -> None:
    text = data_file("small", size="7", nfiles="2")
    (plain / "data.dvc").write_text(text)
    lay(plain, "small")
    used(plain, "small")
    assert (plain / "data.dvc").read_text() == text


def test_outside_git_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "small.yaml").write_text(PARAMS.format("small", 1))
    with pytest.raises(InputError, match=r"is no git work tree \(fatal: .*\), .*`git init` and commit first$"):
        editions.use(tmp_path, "small")
    assert not (tmp_path / "params.yaml").exists()


def test_without_git_it_says_so(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(plain))
    assert refusal(plain, "large").startswith("git is not installed here")


def test_an_unknown_study_names_the_known_ones(plain: Path) -> None:
    for name in ("larg", "large.data", "../params"):
        assert "known: bare, large, small" in refusal(plain, name)
    assert "did you mean 'large'?" in refusal(plain, "larg")


def test_where_no_study_is_the_root_is_named(plain: Path) -> None:
    with pytest.raises(InputError, match=r"^studies/: found no study there; run this in the repository's root$"):
        editions.use(plain / "studies", "large")


def test_a_broken_list_of_data_is_not_put_in_place(plain: Path) -> None:
    (plain / "studies" / "large.data.yaml").write_text("outs: {}\n- ")
    assert refusal(plain, "large").startswith("studies/large.data.yaml: found no list of outs")


def test_two_at_once_are_refused(plain: Path) -> None:
    (plain / ".finetune").mkdir()
    with FileLock(plain / ".finetune" / "study-use.lock"):
        assert refusal(plain, "large").startswith("another `finetune study use` is at work here")


def test_beside_a_study_that_is_at_work_it_is_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_process, "PATIENCE", 0.2)
    before = (plain / "params.yaml").read_bytes()
    with dvc_process.locked(plain, print):
        assert refusal(plain, "large").startswith("another `finetune study run` or `study use` is at work here; wait")
    assert (plain / "params.yaml").read_bytes() == before


# Data


@pytest.mark.dvc
def test_what_is_missing_is_named_with_the_way_to_bring_it(checkout: Path) -> None:
    shutil.rmtree(checkout / "data")
    said = used(checkout, "large")
    assert (checkout / "data.dvc").read_text() == data_file("large")
    assert said == [
        "study large: params.yaml and data.dvc are in place; in data/: cifar10, own missing",
        "next: `finetune fetch cifar10`, `dvc pull data/own`, `make study`",
    ]


@pytest.mark.dvc
def test_what_no_link_leads_to_is_brought_from_a_folder(checkout: Path) -> None:
    study = checkout / "studies" / "large.yaml"
    content = yaml.safe_load(study.read_text())
    content["study"]["edition"] = "reduced"
    study.write_text(yaml.safe_dump(content))
    shutil.rmtree(checkout / "data")
    assert used(checkout, "large")[1].startswith("next: `finetune fetch cifar10 --edition reduced --from FOLDER`, ")


@pytest.mark.dvc
def test_cached_data_leave_for_data_that_must_be_brought_and_come_back(checkout: Path) -> None:
    used(checkout, "large")
    assert lying(checkout) == {}
    lay(checkout, "large", "cifar10")  # as `finetune fetch` brings it
    dvc(checkout, "add", "-q", "data/cifar10")
    said = used(checkout, "small")
    assert lying(checkout) == version("small")
    assert said[0].endswith("in data/: cifar10, own brought") and said[1] == "next: `make study`"
    said = used(checkout, "large")
    assert lying(checkout) == version("large", "cifar10")
    assert said[0].endswith("in data/: cifar10 brought; own missing")
    assert "not in cache" in dvc(checkout, "status", "data.dvc")


@pytest.mark.dvc
def test_uncached_data_are_not_replaced_and_the_sentences_mend_works(checkout: Path) -> None:
    used(checkout, "large")
    lay(checkout, "large", "cifar10")
    message = refusal(checkout, "small")
    assert message.startswith("data/cifar10: a.tar, more/b.mat: not in DVC's cache")
    mend = message.split("`")[1]
    assert mend == "dvc add data/cifar10"
    dvc(checkout, *mend.split()[1:])
    used(checkout, "small")
    assert lying(checkout) == version("small")


@pytest.mark.dvc
@pytest.mark.parametrize("there", [True, False])
def test_the_mend_works_for_data_that_data_dvc_does_not_list(checkout: Path, there: bool) -> None:
    (checkout / "studies" / "large.data.yaml").write_text(f"outs:\n- path: data/new\n  md5: {'0' * 32}.dir\n")
    lay(checkout, "mine", "new")
    if not there:
        (checkout / "data.dvc").unlink()
    mend = refusal(checkout, "large").split("`")[1]
    assert mend.endswith("echo '- path: data/new' >> data.dvc && dvc add data/new")
    run(checkout, "sh", "-c", mend)
    editions.new(checkout, "kept")
    used(checkout, "large")
    used(checkout, "kept")
    assert lying(checkout) == version("small") | version("mine", "new")


@pytest.mark.dvc
def test_the_mend_for_data_in_the_place_of_the_samples_first_names_the_remote(checkout: Path) -> None:
    hold(checkout, *SAMPLES)
    (checkout / "data.dvc").write_text(data_file("small", remote="sample"))
    commit(checkout)
    lay(checkout, "mine", "own")
    said = refusal(checkout, "large")
    assert (
        "; delete the line `remote: sample` of data/own in data.dvc, then put it there with `dvc add data/own`" in said
    )


@pytest.mark.dvc
def test_what_dvc_prints_is_shown_only_where_it_fails(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    used(checkout, "large")
    used(checkout, "small")  # a checkout from the cache
    assert capfd.readouterr() == ("", "")
    (checkout / "studies" / "large.data.yaml").write_text(data_file("large", remote="nowhere"))
    with pytest.raises(InputError, match=r"`dvc pull data/cifar10 data/own` ended with exit code"):
        editions.use(checkout, "large", lambda _: None)
    assert "nowhere" in capfd.readouterr().err


@pytest.mark.dvc
def test_a_long_call_of_dvc_says_that_it_is_at_work(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_version, "_SILENCE", 0.2)
    used(checkout, "large")
    said: list[str] = []
    editions.use(checkout, "small", said.append)
    assert said[0] == "data: `dvc checkout data/cifar10 data/own` is at work, 0 s so far"


@pytest.mark.dvc
def test_a_file_that_a_user_laid_beside_the_archives_is_not_lost(checkout: Path) -> None:
    (checkout / "data" / "own" / "notes.txt").write_text("mine")
    assert "data/own: notes.txt: not in DVC's cache" in refusal(checkout, "large")


@pytest.mark.dvc
def test_a_cache_that_holds_less_than_the_file_does_not_count(checkout: Path) -> None:
    held = md5(files("own", "small")["a.tar"])
    cached = checkout / ".dvc" / "cache" / "files" / "md5" / held[:2] / held[2:]
    cached.chmod(0o644)
    cached.write_bytes(b"")
    assert "data/own: a.tar: not in DVC's cache" in refusal(checkout, "large")


def test_data_that_are_right_stay_though_they_are_not_cached(plain: Path) -> None:
    lay(plain, "large")
    assert used(plain, "large")[0].endswith("in data/: cifar10, own as it was")
    assert lying(plain) == version("large")


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.jpg", "cat-big/1.jpg", "cat 2/1.jpg", "cat/sub/2.jpg"),
        ("a/b", "a.txt", "a!", "B", "\u00e9/x", "z/\u00e9"),
    ],
)
def test_a_folder_has_the_hash_that_dvc_gives_it(names: tuple[str, ...]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name in names:
        tree.add(tuple(name.split("/")), None, HashInfo("md5", md5(name.encode())))
    tree.digest()
    assert tree.hash_info is not None
    assert data_version._hash({name: md5(name.encode()) for name in names}) == tree.hash_info.value


def test_data_that_the_study_does_not_list_stay(plain: Path) -> None:
    lay(plain, "large")
    (plain / "data" / "other").mkdir()
    (plain / "data" / "other" / "photos.zip").write_bytes(b"mine")
    used(plain, "large")
    assert lying(plain)["other/photos.zip"] == b"mine"


def test_data_of_which_the_study_knows_no_hash_stay(plain: Path) -> None:
    (plain / "studies" / "large.data.yaml").write_text("outs:\n- path: data/own\n")
    lay(plain, "small", "own")
    assert used(plain, "large")[0].endswith("in data/: own as it was")
    assert lying(plain) == version("small", "own")


@pytest.mark.dvc
def test_what_fetch_is_still_bringing_stays(checkout: Path) -> None:
    (checkout / "data" / "cifar10" / ".a.tar.part").write_bytes(b"half")
    used(checkout, "large")
    assert lying(checkout) == {"cifar10/.a.tar.part": b"half"}
    used(checkout, "small")
    assert lying(checkout) == version("small") | {"cifar10/.a.tar.part": b"half"}


def test_a_link_to_a_folder_is_left_alone(plain: Path) -> None:
    elsewhere = plain / "elsewhere"
    elsewhere.mkdir()
    (plain / "data").mkdir()
    (plain / "data" / "own").symlink_to(elsewhere)
    assert refusal(plain, "large").startswith("data/own: is a link to a folder")


@pytest.mark.dvc
def test_data_are_pulled_from_the_remote_that_an_out_names(checkout: Path, tmp_path: Path) -> None:
    dvc(checkout, "remote", "add", "-q", "team", str(tmp_path / "remote"))
    (checkout / "studies" / "small.data.yaml").write_text(data_file("small", remote="team"))
    shutil.copy(checkout / "studies" / "small.data.yaml", checkout / "data.dvc")
    commit(checkout)
    dvc(checkout, "push", "-q", "data/own", "data/cifar10")
    used(checkout, "large")
    shutil.rmtree(checkout / ".dvc" / "cache")
    used(checkout, "small")
    assert lying(checkout) == version("small")


@pytest.mark.dvc
def test_a_pull_that_fails_is_one_sentence_and_the_same_call_goes_on(checkout: Path, tmp_path: Path) -> None:
    dvc(checkout, "remote", "add", "-q", "team", str(tmp_path / "remote"))
    (checkout / "studies" / "large.data.yaml").write_text(data_file("large", remote="team"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"^`dvc pull data/cifar10 data/own` ended with exit code \d+; mend what"):
            editions.use(checkout, "large")
    used(checkout, "small")
    assert lying(checkout) == version("small")


@pytest.mark.dvc
@pytest.mark.parametrize("after", ["data.dvc", "a.tar"])
def test_stopped_in_between_nothing_is_lost_and_the_same_call_goes_on(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    write, unlink = editions._write, Path.unlink

    def stop(name: str) -> None:
        if name == after:
            raise KeyboardInterrupt

    def writes(target: Path, content: bytes) -> None:
        write(target, content)
        stop(target.name)

    def unlinks(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        stop(path.name)

    with monkeypatch.context() as patched:
        patched.setattr(editions, "_write", writes)
        patched.setattr(Path, "unlink", unlinks)
        with pytest.raises(KeyboardInterrupt):
            editions.use(checkout, "large")
    used(checkout, "large")
    assert (checkout / "params.yaml").read_text() == PARAMS.format("large", 2)
    assert lying(checkout) == {}
    used(checkout, "small")
    assert lying(checkout) == version("small")


def test_outside_dvc_data_in_the_way_are_one_sentence(plain: Path) -> None:
    lay(plain, "small")
    assert refusal(plain, "large").startswith("`dvc cache dir` failed (")


def test_a_long_check_says_how_far_it_is(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_version, "_SILENCE", 0.0)
    lay(plain, "large")
    said = [line for line in used(plain, "large") if line.startswith("data: checks")]
    assert len(said) == 4 and said[-1].endswith(" MB/s, 0 s left")


# A study of one's own


def test_a_new_study_is_the_one_in_place_under_its_name(plain: Path) -> None:
    (plain / "params.yaml").write_text(PARAMS.format("small", 9))
    (plain / "data.dvc").write_text("outs: [] # mine\n")
    said: list[str] = []
    editions.new(plain, "mine", say=said.append)
    assert (plain / "studies" / "mine.yaml").read_text() == PARAMS.format("mine", 9)
    assert (plain / "studies" / "mine.data.yaml").read_text() == "outs: [] # mine\n"
    assert (plain / "params.yaml").read_text() == PARAMS.format("small", 9)
    assert said == [
        "studies/mine.yaml and studies/mine.data.yaml: written, from params.yaml and data.dvc",
        "next: edit, then `finetune study use mine`",
    ]


def test_a_new_study_starts_from_another(plain: Path) -> None:
    editions.new(plain, "mine", "large")
    assert (plain / "studies" / "mine.yaml").read_text() == PARAMS.format("mine", 2)
    assert (plain / "studies" / "mine.data.yaml").read_text() == data_file("large")
    editions.new(plain, "own", "bare")
    assert (plain / "studies" / "own.yaml").read_text() == PARAMS.format("own", 3)
    assert (plain / "studies" / "own.data.yaml").read_text() == data_file("small")


@pytest.mark.parametrize("name", ["2026", "1e3", "no", "null", "0x1F", "a.b-c_d"])
def test_the_name_of_a_new_study_stays_text(plain: Path, name: str) -> None:
    editions.new(plain, name)
    from finetune import params_file

    assert params_file.read(plain / "studies" / f"{name}.yaml")["study"]["name"] == name


def test_every_study_of_the_repository_can_be_started_from(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "studies", tmp_path / "studies")
    for origin in editions.names(REPOSITORY):
        editions.new(tmp_path, f"my-{origin}", origin)
        mine = params.load(tmp_path / "studies" / f"my-{origin}.yaml").model_dump()
        assert mine.pop("study")["name"] == f"my-{origin}"
        theirs = params.load(REPOSITORY / "studies" / f"{origin}.yaml").model_dump()
        assert mine == {key: value for key, value in theirs.items() if key != "study"}


@pytest.mark.parametrize("name", ["small", "SMALL/x", "../x", "", ".x", "-x", "x.data", "a b"])
def test_a_name_that_is_taken_or_none_is_refused(plain: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"is there already and was left as it is|cannot be a study's name; choose"):
        editions.new(plain, name)
    assert before == {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()}


def test_a_data_file_that_is_there_is_not_replaced(plain: Path) -> None:
    (plain / "studies" / "mine.data.yaml").write_text("outs: []\n")
    with pytest.raises(InputError, match=r"studies/mine\.data\.yaml: is there already"):
        editions.new(plain, "mine")
    assert not (plain / "studies" / "mine.yaml").exists()


def test_what_a_stopped_start_left_is_finished(plain: Path) -> None:
    shutil.copy(plain / "data.dvc", plain / "studies" / "mine.data.yaml")
    editions.new(plain, "mine")
    assert (plain / "studies" / "mine.yaml").read_text() == PARAMS.format("mine", 1)


def test_a_start_from_nothing_is_one_sentence(plain: Path) -> None:
    with pytest.raises(InputError, match=r"studies/larg\.yaml: no such study; did you mean 'large'"):
        editions.new(plain, "mine", "larg")
    (plain / "params.yaml").write_text("training: {lr: 1}\n")
    with pytest.raises(InputError, match=r"params\.yaml: found no study\.name to replace; add it"):
        editions.new(plain, "mine")
    (plain / "params.yaml").unlink()
    with pytest.raises(InputError, match=r"params\.yaml: no such file"):
        editions.new(plain, "mine")


# Nothing of a user's ends up in samples/


def hold(root: Path, *hashes: str) -> None:
    """The samples' remote with these versions in it."""
    for hashed in hashes:
        held = root / "samples" / "dvc-remote" / "files" / "md5" / hashed[:2] / hashed[2:]
        held.parent.mkdir(parents=True, exist_ok=True)
        held.touch()


SAMPLES = [folder_md5(files(name, "small")) for name in SETS]
STRAY = "has `remote: sample`, though samples/dvc-remote does not hold this version"


def test_a_new_study_keeps_the_samples_remote_where_it_holds_the_out(plain: Path) -> None:
    hold(plain, *SAMPLES)
    text = data_file("small", "# mine\n", remote="sample")
    (plain / "data.dvc").write_text(text)
    editions.new(plain, "mine")
    assert (plain / "studies" / "mine.data.yaml").read_text() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("- path: data/own\n  remote: sample # s\n  md5: {}\n", "- path: data/own\n  md5: {}\n"),
        ("- remote: sample\n  path: data/own\n  md5: {}\n", "- path: data/own\n  md5: {}\n"),
        ("- path: data/own # why\n  md5: {}\n  remote: sample\n", "- path: data/own # why\n  md5: {}\n"),
        ("- {{path: data/own, remote: sample, md5: {}}}\n", "- {{path: data/own, md5: {}}}\n"),
        ("- path: data/own\n  md5: {}\n  remote: team\n", "- path: data/own\n  md5: {}\n  remote: team\n"),
    ],
)
def test_a_new_study_drops_it_where_it_does_not(plain: Path, before: str, after: str) -> None:
    hold(plain, SAMPLES[0])
    kept = f"# mine\nouts:\n- path: data/cifar10\n  remote: sample\n  md5: {SAMPLES[0]}\n"
    last = f"- path: data/b\n  remote: sample\n  md5: {SAMPLES[1]}\n"
    (plain / "data.dvc").write_text(kept + before.format(SAMPLES[1]) + last)
    for _ in range(2):  # the second time as after a call that was stopped
        editions.new(plain, "mine")
        written = (plain / "studies" / "mine.data.yaml").read_text()
        assert written == kept + after.format(SAMPLES[1]) + last.replace("  remote: sample\n", "")
        (plain / "studies" / "mine.yaml").unlink()


def test_a_study_that_would_push_into_samples_is_not_put_in_place(plain: Path) -> None:
    hold(plain, *SAMPLES)
    (plain / "studies" / "large.data.yaml").write_text(data_file("large", remote="sample"))
    message = refusal(plain, "large")
    assert message.startswith(
        f"studies/large.data.yaml: data/cifar10 ({folder_md5(files('cifar10', 'large'))}), data/own"
    )
    assert STRAY in message and "delete the line `remote: sample`" in message


def test_data_in_place_that_would_be_pushed_into_samples_are_refused_and_the_mend_works(plain: Path) -> None:
    hold(plain, *SAMPLES)
    lay(plain, "large")
    text = data_file("large", remote="sample")
    (plain / "data.dvc").write_text(text)
    editions.new(plain, "mine")
    assert refusal(plain, "large").startswith("data.dvc: data/cifar10 (")
    (plain / "data.dvc").write_text(text.replace("  remote: sample\n", ""))
    used(plain, "mine")
    assert "remote" not in (plain / "data.dvc").read_text()


def test_a_run_of_the_study_is_refused_before_and_after_dvc_writes_such_a_hash(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(plain, *SAMPLES)
    asked = []

    def repro(*words: str, cwd: Path) -> int:
        asked.append(words[0])
        if words[0] == "repro":  # own archives lie there: DVC hashes them and keeps the remote
            (cwd / "data.dvc").write_text(data_file("large", remote="sample"))
        return 0

    monkeypatch.setattr(workflow, "_dvc", repro)
    monkeypatch.setattr(workflow, "_head_start", lambda *_: None)
    (plain / "data.dvc").write_text(data_file("small", remote="sample"))
    sample = params.load(REPOSITORY / "params.yaml")
    for expected in (["pull", "repro"], []):
        with pytest.raises(InputError) as caught:
            workflow.run_study(sample, Layout(plain), print)
        assert str(caught.value).startswith("data.dvc: data/cifar10 (") and STRAY in str(caught.value)
        assert asked == expected
        asked.clear()


def test_an_out_of_the_samples_remote_without_a_hash_is_refused(plain: Path) -> None:
    hold(plain, *SAMPLES)
    (plain / "data.dvc").write_text("outs:\n- path: data/own\n  remote: sample\n")
    with pytest.raises(InputError, match=r"^data\.dvc: data/own \(no hash yet\): has `remote: sample`"):
        sample_remote.check(plain, plain / "data.dvc")


def test_where_there_is_no_such_folder_the_remotes_name_is_anybodys(plain: Path) -> None:
    (plain / "data.dvc").write_text(data_file("small", remote="sample"))
    sample_remote.check(plain, plain / "data.dvc")
    editions.new(plain, "mine")
    assert (plain / "studies" / "mine.data.yaml").read_text() == data_file("small", remote="sample")


# The command line


@pytest.fixture
def _own_sigterm() -> Iterator[None]:
    """Each command sets a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_own_sigterm")
def test_a_study_that_is_not_valid_is_not_put_in_place(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain)
    result = CliRunner().invoke(cli, ["study", "use", "large"])
    assert result.exit_code == 2 and "studies/large.yaml: study.datasets is missing" in result.stderr
    assert (plain / "params.yaml").read_text() == PARAMS.format("small", 1)


@pytest.mark.dvc
@pytest.mark.usefixtures("_own_sigterm")
def test_the_command_starts_a_study_and_puts_it_in_place(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    shutil.copy(REPOSITORY / "studies" / "seed-report.yaml", checkout / "studies")
    for words, said in (
        (["study", "new", "mine", "--from", "seed-report"], "finetune study use mine"),
        (
            ["study", "use", "mine"],
            "study mine: params.yaml and data.dvc are in place; in data/: cifar10, own as it was",
        ),
    ):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0 and said in result.stdout, result.output
    assert params.load(checkout / "params.yaml").study.name == "mine"
