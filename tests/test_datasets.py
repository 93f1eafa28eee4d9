"""One contract for all data sets on tiny archives, their faults, and the real reduced editions where they lie."""

import gzip
import io
import json
import pickle
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import own_images
import tiny_archives
from finetune import datasets
from finetune.datasets import class_folders
from finetune.datasets.archives import md5
from finetune.errors import InputError
from whole_contents import whole

SHARED = Path(__file__).parents[2] / "shared" / "data"
NAMES = datasets.names()
# What each data set cannot do without: (archive, metadata member), and (archive, a member with images).
METADATA = [
    ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/batches.meta"),
    ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python/meta"),
    ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/images.txt"),
    ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/image_class_labels.txt"),
    ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/train_test_split.txt"),
    ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/classes.txt"),
    ("cars196", "car_devkit.tgz", "devkit/cars_meta.mat"),
    ("cars196", "car_devkit.tgz", "devkit/cars_train_annos.mat"),
    ("food101", "food-101.tar.gz", "food-101/meta/classes.txt"),
    ("food101", "food-101.tar.gz", "food-101/meta/train.json"),
    ("food101", "food-101.tar.gz", "food-101/meta/test.json"),
]
IMAGES = [
    ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_3"),
    ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python/test"),
    ("cub200", "CUB_200_2011.tgz", "CUB_200_2011/images/002.Laysan_Albatross/Bird_0003.jpg"),
    ("cars196", "cars_train.tgz", "cars_train/00005.jpg"),
    ("cars196", "cars_test.tgz", "cars_test/00002.jpg"),
    ("food101", "food-101.tar.gz", "food-101/images/baklava/1001.jpg"),
]
OWN = [("own.tar.gz", "own.tar.gz"), ("own.tgz", "own.tgz")]
TARS = [*sorted({(name, archive) for name, archive, _ in METADATA + IMAGES}), *OWN]
IMAGE_TARS = [*sorted({(name, archive) for name, archive, _ in IMAGES}), *OWN]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[*NAMES, *own_images.FORMS])
def any_name(request: pytest.FixtureRequest) -> str:
    """A data set that has a file of its own, or class folders in each form in which they are read."""
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def dataset(name: str) -> datasets.Dataset:
    return class_folders.dataset("own") if name in own_images.FORMS else datasets.load(name)


def write(name: str, folder: Path, train: int = 4, test: int = 2) -> None:
    """Three classes, `train` and `test` images of each."""
    if name in own_images.FORMS:
        own_images.write(folder / name if Path(name).suffix else folder, own_images.split(train=train, val=test))
    else:
        tiny_archives.write(name, folder, classes=3, train=train, test=test)


def examples(name: str, folder: Path) -> list[datasets.Example]:
    return whole(dataset(name).read(folder))[1]


def fault(name: str, folder: Path) -> str:
    """The sentence with which reading everything fails."""
    with pytest.raises(InputError) as caught:
        examples(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pixels(image: bytes | np.ndarray) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


# The contract


def test_all_five_are_found() -> None:
    assert NAMES == ["cars196", "cifar10", "cifar100", "cub200", "food101"]


def test_declaration_is_consistent(name: str) -> None:
    dataset = datasets.load(name)
    assert dataset.name == name
    assert {"official", "reduced"} <= dataset.editions.keys()
    assert dataset.sources.keys() <= set(dataset.archives)
    for edition in dataset.editions.values():
        assert set(edition.md5) == set(dataset.archives)
        assert all(len(digest) == 32 and set(digest) <= set("0123456789abcdef") for digest in edition.md5.values())


def test_archives_are_those_that_are_written(name: str, folder: Path) -> None:
    tiny_archives.write(name, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(datasets.load(name).archives)


def test_classes_are_in_label_order(any_name: str, folder: Path) -> None:
    write(any_name, folder)
    expected = own_images.CLASSES if any_name in own_images.FORMS else tiny_archives.class_names(any_name)
    assert whole(dataset(any_name).read(folder))[0] == expected


def test_every_image_of_both_splits_comes_under_its_label(any_name: str, folder: Path) -> None:
    write(any_name, folder, train=4, test=2)
    counts = Counter((example.split, example.label) for example in examples(any_name, folder))
    assert counts == {("train", k): 4 for k in range(3)} | {("test", k): 2 for k in range(3)}


def test_images_belong_to_their_labels(any_name: str, folder: Path) -> None:
    write(any_name, folder)
    for example in examples(any_name, folder):
        image = pixels(example.image)
        assert image.dtype == np.uint8
        assert image.ndim == 3
        # JPEG changes a plain colour by a few levels at most
        assert np.abs(image.astype(int) - tiny_archives.colour(example.label)).max() <= 6


def test_members_name_archive_and_place_and_differ(any_name: str, folder: Path) -> None:
    write(any_name, folder)
    members = [example.member for example in examples(any_name, folder)]
    assert len(set(members)) == len(members)
    if any_name == "own":
        assert all((folder.parents[1] / member).is_file() for member in members)
    else:
        assert {member.split(": ")[0] for member in members} <= {any_name, *dataset(any_name).archives}


def test_reading_twice_gives_the_same(any_name: str, folder: Path) -> None:
    write(any_name, folder)
    first, second = examples(any_name, folder), examples(any_name, folder)
    assert [(e.split, e.label, e.member) for e in first] == [(e.split, e.label, e.member) for e in second]
    assert all(np.array_equal(pixels(a.image), pixels(b.image)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [*NAMES, "own.tar.gz", "own.tgz"])
def test_repacked_members_that_start_with_a_dot_are_read(name: str, folder: Path) -> None:
    write(name, folder)
    for archive in folder.glob("*gz"):
        with tiny_archives.edited(archive) as files:
            for member in list(files):
                files[f"./{member}"] = files.pop(member)
    assert len(examples(name, folder)) == 18


def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the bytes that are read of each file, from now on."""
    counts: Counter[str] = Counter()
    real = Path.open

    class Raw(io.FileIO):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            count = super().readinto(buffer) or 0
            counts[Path(str(self.name)).name] += count
            return count

        def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            data = super().read(-1 if size is None else size) or b""
            counts[Path(str(self.name)).name] += len(data)
            return data

        def readall(self) -> bytes:
            data = super().readall()
            counts[Path(str(self.name)).name] += len(data)
            return data

    def opened(path: Path, mode: str = "r", buffering: int = -1, *more: object, **named: object) -> object:
        if "b" in mode and "r" in mode:
            return Raw(path) if buffering == 0 else io.BufferedReader(Raw(path))
        return real(path, mode, buffering, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", opened)
    return counts


@pytest.mark.parametrize("name", [*NAMES, "own.tar.gz", "own.tgz"])
def test_each_archive_is_read_once_with_its_md5(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(name, folder, train=8, test=4)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    counts = read_bytes(monkeypatch)
    contents = dataset(name).read(folder)
    whole(contents)
    assert contents.reading is not None
    contents.reading.md5()
    first_bytes = 2 if name.startswith("own") else 0  # that tell a .tar from a .tar.gz
    assert counts == {name: size + first_bytes for name, size in sizes.items()}


@pytest.mark.parametrize("form", ["own.tar", "own.zip"])
def test_the_contents_of_an_archive_that_can_be_listed_are_read_once(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"{kind}/{i}.jpg": np.random.default_rng(i).bytes(50_000) for kind in "ab" for i in range(20)}
    size = own_images.write(folder / form, images).stat().st_size
    counts = read_bytes(monkeypatch)
    contents = dataset(form).read(folder)
    whole(contents)
    assert contents.reading is not None
    contents.reading.md5()
    listing = len(images) * 8192 + 70_000  # a buffer for each header; what may hold the end of a .zip
    assert size <= counts[form] <= size + listing


def test_the_images_of_a_folder_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("own", folder)
    sizes = Counter[str]()
    for file in folder.rglob("*.jpg"):
        sizes[file.name] += file.stat().st_size
    counts = read_bytes(monkeypatch)
    contents = dataset("own").read(folder)
    whole(contents)
    assert contents.reading is not None
    contents.reading.md5()
    assert counts == sizes


def test_the_md5_is_the_same_whether_images_are_read_or_not(any_name: str, folder: Path) -> None:
    write(any_name, folder)
    contents = dataset(any_name).read(folder)
    whole(contents)
    digest = dataset(any_name).digest
    files = [folder / name for name in dataset(any_name).archives]
    expected = digest(folder) if digest else {file.name: md5(file) for file in files}
    assert contents.reading is not None
    assert contents.reading.md5() == expected
    assert contents.reading.share() == 1


@pytest.mark.parametrize(
    ("name", "archive", "first"),
    [
        ("cifar10", "cifar-10-python.tar.gz", ".meta"),
        ("cifar100", "cifar-100-python.tar.gz", "meta"),
        ("cub200", "CUB_200_2011.tgz", ".txt"),
        ("food101", "food-101.tar.gz", (".txt", ".json")),
    ],
)
def test_metadata_that_come_first_give_the_same_and_give_it_at_once(
    name: str, archive: str, first: str | tuple[str, ...], folder: Path
) -> None:
    write(name, folder)
    last, expected = dataset(name).read(folder), examples(name, folder)
    with tiny_archives.edited(folder / archive) as files:
        everything = sorted(files.items(), key=lambda item: not item[0].endswith(first))
        files.clear()
        files.update(everything)
    contents = dataset(name).read(folder)
    assert contents.classes == tiny_archives.class_names(name)
    assert last.classes == ()
    assert contents.placed
    assert last.placed == name.startswith("cifar")
    assert contents.images == (None if name.startswith("cifar") else 18)
    found = list(contents.examples)
    assert [(e.split, e.label, e.member) for e in found] == [(e.split, e.label, e.member) for e in expected]


@pytest.mark.parametrize("tables_first", [True, False])
@pytest.mark.parametrize("suffix", ["png", "JPEG", "webp"])
def test_listed_images_of_any_kind_are_taken(suffix: str, tables_first: bool, folder: Path) -> None:
    write("cub200", folder)
    with tiny_archives.edited(folder / "CUB_200_2011.tgz") as files:
        edited = {
            name.replace("3.jpg", f"3.{suffix}"): data.replace(b"3.jpg", f"3.{suffix}".encode())
            if name.endswith("images.txt")
            else data
            for name, data in files.items()
        }
        files.clear()
        files.update(sorted(edited.items(), key=lambda item: item[0].endswith(".txt") != tables_first))
    found = examples("cub200", folder)
    assert len(found) == 18
    assert sum(example.member.endswith(f"3.{suffix}") for example in found) == 3


def test_cifar_row_is_three_planes(folder: Path) -> None:
    tiny_archives.write("cifar10", folder, classes=1, train=0, test=1)
    row = np.zeros((1, 3072), np.uint8)
    row[0, 1024 + 32 * 5 + 7] = 200  # green, 5 down, 7 right
    with tiny_archives.edited(folder / "cifar-10-python.tar.gz") as files:
        files["cifar-10-batches-py/test_batch"] = tiny_archives.python2_pickle({b"labels": [0], b"data": row})
    (example,) = examples("cifar10", folder)
    assert pixels(example.image).shape == (32, 32, 3)
    assert pixels(example.image)[5, 7].tolist() == [0, 200, 0]


def test_cifar_pickled_by_python_3_is_read(folder: Path) -> None:
    tiny_archives.write("cifar10", folder, classes=2, train=0, test=1)
    batch = {b"batch_label": b"", b"labels": [1], b"data": np.full((1, 3072), 7, np.uint8)}
    with tiny_archives.edited(folder / "cifar-10-python.tar.gz") as files:
        files["cifar-10-batches-py/test_batch"] = pickle.dumps(batch, protocol=2)
    (example,) = examples("cifar10", folder)
    assert example.label == 1
    assert (pixels(example.image) == 7).all()


def test_md5_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert md5(tmp_path / "file") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, A.5


# Faults of the archive


def test_absent_archive_says_what_to_pull(any_name: str, tmp_path: Path) -> None:
    message = fault(any_name, tmp_path / any_name)
    assert "".join(dataset(any_name).archives[:1]) in message
    assert f"dvc pull data/{any_name}" in message


def test_an_absent_official_archive_can_be_fetched(name: str, tmp_path: Path) -> None:
    assert f"or `finetune fetch {name}`, or put the official file there" in fault(name, tmp_path / name)


@pytest.mark.parametrize(("name", "archive"), TARS)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
def test_truncated_archive(name: str, archive: str, kept: float, folder: Path) -> None:
    write(name, folder)
    whole = (folder / archive).read_bytes()
    (folder / archive).write_bytes(whole[: int(kept * len(whole))])
    assert re.match(rf"{re.escape(str(folder / archive))}(: \S+)?: truncated", fault(name, folder))


@pytest.mark.parametrize(("name", "archive"), IMAGE_TARS)
def test_archive_that_lacks_only_its_last_byte(name: str, archive: str, folder: Path) -> None:
    write(name, folder)
    (folder / archive).write_bytes((folder / archive).read_bytes()[:-1])
    assert_damaged(folder / archive, fault(name, folder))


@pytest.mark.parametrize(("name", "archive"), IMAGE_TARS)
def test_wrong_checksum(name: str, archive: str, folder: Path) -> None:
    write(name, folder)
    content = bytearray((folder / archive).read_bytes())
    content[-8] ^= 1  # gzip ends with CRC-32 and length, 4 bytes each
    (folder / archive).write_bytes(content)
    assert_damaged(folder / archive, fault(name, folder))


def assert_damaged(archive: Path, message: str) -> None:
    """What is wrong at a small archive's very end may come out while its members are read."""
    assert message.startswith(f"{archive}: ")
    assert ": truncated, damaged" in message


def test_truncated_in_the_padding_after_the_last_member(folder: Path) -> None:
    tiny_archives.write("cub200", folder)
    archive = folder / "CUB_200_2011.tgz"
    padded = gzip.decompress(archive.read_bytes()) + bytes(5_000_000)  # more than is read at once
    archive.write_bytes(gzip.compress(padded)[:-1])
    assert f"{archive}: truncated" in fault("cub200", folder)


def test_compressed_data_overwritten_inside_an_image(folder: Path) -> None:
    tiny_archives.write("cub200", folder)
    archive = folder / "CUB_200_2011.tgz"
    with tiny_archives.edited(archive) as files:
        image = min(member for member in files if member.endswith(".jpg"))
        files[image] = b"".join(b"%d " % k for k in range(600_000))  # several reads long, and compressible
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = b"\xff" * 500
    archive.write_bytes(content)
    assert f"{archive}: {image}: truncated, damaged" in fault("cub200", folder)


@pytest.mark.parametrize(("name", "archive"), TARS)
def test_file_that_is_no_archive(name: str, archive: str, folder: Path) -> None:
    write(name, folder)
    (folder / archive).write_text("<html>404</html>")
    assert str(folder / archive) in fault(name, folder)


@pytest.mark.parametrize(("name", "archive", "member"), METADATA + IMAGES)
def test_missing_member(name: str, archive: str, member: str, folder: Path) -> None:
    tiny_archives.write(name, folder)
    with tiny_archives.edited(folder / archive) as files:
        del files[member]
    assert f"{folder / archive}: {member}: no such member" in fault(name, folder)


@pytest.mark.parametrize(("name", "archive", "member"), METADATA)
def test_metadata_that_are_not_what_they_should_be(name: str, archive: str, member: str, folder: Path) -> None:
    tiny_archives.write(name, folder)
    with tiny_archives.edited(folder / archive) as files:
        files[member] = b"\xff\xfe nonsense"
    assert f"{folder / archive}: {member}: not " in fault(name, folder)


@pytest.mark.parametrize(("name", "archive"), TARS)
@pytest.mark.parametrize("escape", ["../evil.jpg", "/etc/evil.jpg", "images/../../evil.jpg"])
def test_member_that_leaves_its_folder(name: str, archive: str, escape: str, folder: Path) -> None:
    write(name, folder)
    with tiny_archives.edited(folder / archive) as files:
        everything = dict(files)
        files.clear()
        files.update({escape: b""} | everything)
    assert f"{folder / archive}: {escape}: a path that leaves its folder" in fault(name, folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device(kind: bytes, folder: Path) -> None:
    tiny_archives.write("cub200", folder)
    archive = folder / "CUB_200_2011.tgz"
    with tiny_archives.edited(archive) as files:
        everything = dict(files)
    link = tarfile.TarInfo("CUB_200_2011/images.txt")
    link.type, link.linkname = kind, "/etc/passwd"
    tiny_archives.tarball(archive, everything, (link,))
    assert f"{archive}: CUB_200_2011/images.txt: a link or a device" in fault("cub200", folder)


@pytest.mark.parametrize(("name", "archive", "member"), [row for row in IMAGES if row[2].endswith(".jpg")])
def test_image_that_is_not_listed(name: str, archive: str, member: str, folder: Path) -> None:
    tiny_archives.write(name, folder)
    stranger = member.replace(".jpg", "b.jpg")
    with tiny_archives.edited(folder / archive) as files:
        files[stranger] = files[member]
    assert f"{folder / archive}: {stranger}: the metadata do not list this image" in fault(name, folder)


def test_member_that_comes_twice(folder: Path) -> None:
    tiny_archives.write("cars196", folder)
    archive = folder / "cars_test.tgz"
    with tarfile.open(archive) as tar:
        info = tar.getmember("cars_test/00001.jpg")
        image = tar.extractfile(info).read()  # type: ignore[union-attr]
    with tarfile.open(archive, "w:gz") as tar:
        for _ in range(2):
            tar.addfile(info, io.BytesIO(image))
    assert f"{archive}: cars_test/00001.jpg: this member comes twice" in fault("cars196", folder)


# Faults of the metadata


@pytest.mark.parametrize(("label", "counted"), [(3, 4), (-1, 0)])
@pytest.mark.parametrize(
    ("name", "member"), [("cifar10", "cifar-10-batches-py/data_batch_2"), ("cifar100", "cifar-100-python/train")]
)
def test_cifar_label_out_of_range(name: str, member: str, label: int, counted: int, folder: Path) -> None:
    tiny_archives.write(name, folder, classes=3)
    (archive,) = folder.iterdir()
    key = b"labels" if name == "cifar10" else b"fine_labels"
    with tiny_archives.edited(archive) as files:
        files[member] = tiny_archives.python2_pickle({key: [0, label], b"data": np.zeros((2, 3072), np.uint8)})
    assert f"{archive}: {member}[1]: labelled class {counted} of 3" in fault(name, folder)


def test_cub_label_out_of_range(folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=3, train=1, test=1)
    archive, member = folder / "CUB_200_2011.tgz", "CUB_200_2011/image_class_labels.txt"
    with tiny_archives.edited(archive) as files:
        files[member] = b"1 1\n2 1\n3 2\n4 4\n5 3\n6 3\n"
    assert f"{archive}: {member}: image 4: labelled class 4 of 3" in fault("cub200", folder)


@pytest.mark.parametrize(("member", "line"), [("images.txt", b"8 x.jpg\n"), ("train_test_split.txt", b"8 1\n")])
def test_cub_tables_that_differ(member: str, line: bytes, folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=1, train=4, test=3)
    archive = folder / "CUB_200_2011.tgz"
    with tiny_archives.edited(archive) as files:
        files[f"CUB_200_2011/{member}"] += line
    assert "image 8 is only here or only in CUB_200_2011/images.txt" in fault("cub200", folder)


@pytest.mark.parametrize("line", [b"7 1\n", b"8\n", b"x 1\n"])  # an old id, no value, no id
def test_cub_line_that_is_not_id_and_value(line: bytes, folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=1, train=4, test=3)
    archive, member = folder / "CUB_200_2011.tgz", "CUB_200_2011/train_test_split.txt"
    with tiny_archives.edited(archive) as files:
        files[member] += line
    assert f"{archive}: {member}: found the line '{line.decode().strip()}'" in fault("cub200", folder)


def test_cub_label_that_is_no_number(folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=1, train=1, test=1)
    archive, member = folder / "CUB_200_2011.tgz", "CUB_200_2011/image_class_labels.txt"
    with tiny_archives.edited(archive) as files:
        files[member] = b"1 1\n2 one\n"
    assert f"{archive}: {member}: image 2 has 'one'" in fault("cub200", folder)


def test_cub_split_that_is_neither(folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=1, train=1, test=1)
    archive, member = folder / "CUB_200_2011.tgz", "CUB_200_2011/train_test_split.txt"
    with tiny_archives.edited(archive) as files:
        files[member] = b"1 1\n2 2\n"
    assert f"{archive}: {member}: image 2 has '2'" in fault("cub200", folder)


def test_cub_classes_that_are_not_counted_from_one(folder: Path) -> None:
    tiny_archives.write("cub200", folder, classes=2)
    with tiny_archives.edited(folder / "CUB_200_2011.tgz") as files:
        files["CUB_200_2011/classes.txt"] = b"1 a\n3 b\n"
    assert "CUB_200_2011/classes.txt: class ids are not 1, 2, 3" in fault("cub200", folder)


@pytest.mark.parametrize("number", [0, 4])
def test_cars_label_out_of_range(number: int, folder: Path) -> None:
    tiny_archives.write("cars196", folder, classes=3, train=1, test=1)
    labels = folder / "cars_test_annos_withlabels.mat"
    rows = [("00001.jpg", 1), ("00002.jpg", number), ("00003.jpg", 3)]
    labels.write_bytes(tiny_archives.mat(annotations=tiny_archives.annotations(rows)))
    assert f"{labels}: 00002.jpg: labelled class {number} of 3" in fault("cars196", folder)


def test_cars_test_labels_without_labels(folder: Path) -> None:
    tiny_archives.write("cars196", folder)
    labels = folder / "cars_test_annos_withlabels.mat"
    unlabelled = np.array([[("00001.jpg",)]], dtype=[("fname", "O")])
    labels.write_bytes(tiny_archives.mat(annotations=unlabelled))
    assert f"{labels}: an annotation without class or fname" in fault("cars196", folder)


def test_cars_image_listed_twice(folder: Path) -> None:
    tiny_archives.write("cars196", folder)
    labels = folder / "cars_test_annos_withlabels.mat"
    rows = [("00001.jpg", 1), ("00001.jpg", 2)]
    labels.write_bytes(tiny_archives.mat(annotations=tiny_archives.annotations(rows)))
    assert f"{labels}: lists cars_test/00001.jpg twice" in fault("cars196", folder)


def test_cars_with_a_single_class_and_image(folder: Path) -> None:
    tiny_archives.write("cars196", folder, classes=1, train=1, test=1)
    assert [(e.split, e.label) for e in examples("cars196", folder)] == [("train", 0), ("test", 0)]


def test_food_class_that_is_unknown(folder: Path) -> None:
    tiny_archives.write("food101", folder)
    archive, member = folder / "food-101.tar.gz", "food-101/meta/test.json"
    with tiny_archives.edited(archive) as files:
        files[member] = json.dumps({"pizza": ["pizza/1"]}).encode()
    assert f"{archive}: {member}: class 'pizza' is not one of the 3" in fault("food101", folder)


@pytest.mark.parametrize("listing", [b"[]", b'{"apple_pie": 3}'])
def test_food_listing_of_another_shape(listing: bytes, folder: Path) -> None:
    tiny_archives.write("food101", folder)
    archive, member = folder / "food-101.tar.gz", "food-101/meta/train.json"
    with tiny_archives.edited(archive) as files:
        files[member] = listing
    assert f"{archive}: {member}: not a mapping of classes to lists" in fault("food101", folder)


# Pickles


class Malicious:
    """Makes a folder when unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("name", "archive", "member"), [row for row in METADATA + IMAGES if "cifar" in row[0]])
def test_malicious_pickle_is_refused_and_not_run(
    name: str, archive: str, member: str, folder: Path, tmp_path: Path
) -> None:
    tiny_archives.write(name, folder)
    with tiny_archives.edited(folder / archive) as files:
        files[member] = pickle.dumps({b"data": Malicious(tmp_path / "made")}, protocol=2)
    message = fault(name, folder)
    assert f"{folder / archive}: {member}: " in message
    assert "mkdir is not allowed" in message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {b"labels": [0], b"data": np.zeros((1, 3071), np.uint8)},
        {b"labels": [0], b"data": np.zeros((1, 3072), np.int64)},
        {b"labels": [0, 0], b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [0.5], b"data": np.zeros((1, 3072), np.uint8)},
        {b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [0]},
        [0],
    ],
)
def test_cifar_batch_of_another_shape(batch: object, folder: Path) -> None:
    tiny_archives.write("cifar10", folder)
    archive, member = folder / "cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch"
    with tiny_archives.edited(archive) as files:
        files[member] = tiny_archives.python2_pickle(batch)
    assert f"{archive}: {member}: " in fault("cifar10", folder)


# Real images


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_real_reduced_edition_is_as_declared(name: str) -> None:
    dataset = datasets.load(name)
    edition = dataset.editions["reduced"]
    assert {archive: md5(SHARED / name / archive) for archive in dataset.archives} == edition.md5
    classes, examples = whole(dataset.read(SHARED / name))
    assert len(classes) == dataset.classes
    counts: Counter[str] = Counter()
    labels: dict[str, set[int]] = {"train": set(), "test": set()}
    for example in examples:
        assert example.split is not None
        if counts[example.split] % 500 == 0:
            assert pixels(example.image).shape[2] == 3
        counts[example.split] += 1
        labels[example.split].add(example.label)
    assert counts == {"train": edition.train, "test": edition.test}
    assert labels["train"] == labels["test"] == set(range(dataset.classes))
