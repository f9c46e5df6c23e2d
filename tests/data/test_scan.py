"""Layouts, accounting, and errors of scanning."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.photos import make_photos, photo
from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.data.scan import scan, scan_flat, with_sizes
from toolkit.errors import DataError


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(0, 0).save(path, "PNG")
    return path


def listing(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    return write(folder / "list.csv", text.encode(encoding))


def split_of(manifest: Manifest) -> dict[str, int]:
    return dict(zip(manifest.paths, manifest.splits.tolist(), strict=True))


def reasons(manifest: Manifest) -> dict[str, str]:
    return {item.path: item.reason for item in manifest.quarantined}


def n_files(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def test_class_folders_are_unassigned_and_sorted(photo_folder):
    image(photo_folder / "cat" / "deep" / "er" / "x.png")
    manifest = scan(photo_folder)
    assert manifest.classes == ("cat", "dog", "owl")
    assert list(manifest.paths) == sorted(manifest.paths) and len(manifest) == 16 == manifest.n_scanned
    assert manifest.class_counts(UNASSIGNED).tolist() == [6, 4, 6]
    assert all(
        manifest.classes[label] == path.split("/")[0]
        for path, label in zip(manifest.paths, manifest.labels, strict=True)
    )
    assert manifest.labels.dtype == np.int64 and manifest.splits.dtype == np.int8
    assert "cat/deep/er/x.png" in manifest.paths and manifest.file(0).is_file()
    assert scan(str(photo_folder)).fingerprint() == manifest.fingerprint()


def test_sizes_stay_beside_their_paths(tmp_path):
    wanted = {}
    for number, name in enumerate(("a/2.png", "b/1.png", "a/1.png", "b/0.png")):
        wanted[name] = (30 + number, 20)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(0, 0).resize(wanted[name]).save(tmp_path / name)
    write(tmp_path / "a/1b.png")  # is quarantined
    manifest = scan(tmp_path)
    for some in (manifest, manifest.without([(1, "gone")]), manifest.without([(0, "gone"), (3, "gone")])):
        assert some.sizes.dtype == np.int32 and some.size is None
        assert {path: tuple(size) for path, size in zip(some.paths, some.sizes.tolist(), strict=True)} == {
            path: wanted[path] for path in some.paths
        }
    assert manifest.without([(0, ""), (1, ""), (2, "")]).size == (31, 20)
    unseen = replace(manifest, sizes=manifest.sizes[:0])
    assert unseen.size is None and (with_sizes(unseen).sizes == manifest.sizes).all()
    (tmp_path / manifest.paths[2]).unlink()
    assert with_sizes(unseen).sizes.tolist()[1:3] == [manifest.sizes[1].tolist(), [0, 0]]
    with pytest.raises(ValueError, match="sizes of 4 images or none expected, got 2"):
        replace(manifest, sizes=manifest.sizes[:2])


def test_a_header_may_claim_any_side(tmp_path, monkeypatch):
    image(tmp_path / "a/1.png"), image(tmp_path / "b/1.png")
    monkeypatch.setattr("toolkit.data.scan.probe_image", lambda *_: (3_000_000_000, 1))
    assert scan(tmp_path).size == (2**31 - 1, 1)


def test_a_relative_source_gives_the_same_manifest(photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder.parent)
    assert scan("photos").root == photo_folder


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Train", "Valid", "TEST"), ("train", "validation", "test")]
)
def test_split_folders(tmp_path, train, val, test):
    for folder, seed in ((train, 0), (val, 1), (test, 2)):
        make_photos(tmp_path / folder, {"b": 2, "a": 3}, seed=seed)
    manifest = scan(tmp_path)
    assert manifest.classes == ("a", "b")
    for split in (TRAIN, VAL, TEST):
        assert manifest.class_counts(split).tolist() == [3, 2]


def test_train_without_val_is_left_to_be_split_and_test_stays(tmp_path):
    make_photos(tmp_path / "train", {"a": 2, "b": 2})
    make_photos(tmp_path / "test", {"a": 1})
    (tmp_path / "val").mkdir()
    manifest = scan(tmp_path)
    assert manifest.class_counts(UNASSIGNED).tolist() == [2, 2]
    assert manifest.class_counts(TEST).tolist() == [1, 0]


def test_a_flat_test_folder_is_unlabelled(tmp_path):
    make_photos(tmp_path / "train", {"a": 2, "b": 2})
    make_photos(tmp_path, {"test": 3, "test/more": 1})
    manifest = scan(tmp_path)
    assert manifest.labels[manifest.rows(TEST)].tolist() == [-1] * 4


def test_a_labelled_test_folder_quarantines_loose_images(tmp_path):
    make_photos(tmp_path / "train", {"a": 2, "b": 2})
    make_photos(tmp_path, {"test": 1, "test/a": 1})
    manifest = scan(tmp_path)
    assert reasons(manifest) == {"test/000.jpg": "not in a class folder"}
    assert manifest.labels[manifest.rows(TEST)].tolist() == [0]


def test_every_file_is_accounted_for(tmp_path):
    root = make_photos(tmp_path / "d", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "extra": 2, "train": 1})
    image(root / "loose.png")
    write(root / "train/a/broken.jpg", b"<html>")
    write(root / "train/a/empty.png", b"")
    write(root / "train/a/phone.heic", b"\0\0\0\x18ftypheic")
    skipped = [
        "README.md",
        "train/.DS_Store",
        "train/a/Thumbs.db",
        "train/a/._a.jpg",
        "__MACOSX/a/b.jpg",
        ".git/x/y.png",
    ]
    skipped += ["train/a/desktop.ini", "train/b/notes.txt", "val/a/.hidden/z.jpg", "extra/list.csv"]
    for name in skipped:
        write(root / name)
    manifest = scan(root)
    assert manifest.n_skipped == len(skipped)
    assert set(reasons(manifest)) == {
        "train/000.jpg", "loose.png", "extra/000.jpg", "extra/001.jpg",
        "train/a/broken.jpg", "train/a/empty.png", "train/a/phone.heic",
    }  # fmt: skip
    assert all(reasons(manifest).values()) and "HEIC" in reasons(manifest)["train/a/phone.heic"]
    assert len(manifest) == 8 and manifest.n_scanned == n_files(root)
    assert list(reasons(manifest)) == sorted(reasons(manifest))


def test_loose_images_beside_class_folders_are_quarantined(photo_folder):
    image(photo_folder / "loose.png")
    assert reasons(scan(photo_folder)) == {"loose.png": "not in a class folder"}


def test_an_image_without_suffix_is_found_by_its_content(photo_folder):
    image(photo_folder / "cat" / "no_suffix")
    assert "cat/no_suffix" in scan(photo_folder).paths


def test_class_folders_without_usable_images_are_no_classes(photo_folder):
    (photo_folder / "void").mkdir()
    write(photo_folder / "rot" / "a.jpg")
    manifest = scan(photo_folder)
    assert manifest.classes == ("cat", "dog", "owl")
    assert "'rot'" in manifest.remarks[0] and "'void'" in manifest.remarks[1]


def test_a_class_may_be_called_train_where_train_holds_images_only(tmp_path):
    manifest = scan(make_photos(tmp_path / "vehicles", {"train": 2, "plane": 2}))
    assert manifest.classes == ("plane", "train")
    assert "'train'" in manifest.remarks[0]


def test_odd_names_are_kept(tmp_path):
    names = ["a b.png", "comma, here.png", "new\nline.png", "käse 猫.png", 'quo"te.png', "-dash.png", "back\\slash.png"]
    for name in names:
        image(tmp_path / "cl ass" / name)
    image(tmp_path / "猫" / "x.png")
    manifest = scan(tmp_path)
    assert sorted(manifest.paths) == sorted([f"cl ass/{name}" for name in names] + ["猫/x.png"])
    assert all(manifest.file(row).is_file() for row in range(len(manifest)))


def test_names_that_are_not_utf8_are_quarantined(photo_folder):
    target = os.fsencode(photo_folder)
    source = photo_folder / "cat" / "000.jpg"
    shutil.copy(source, target + b"/dog/caf\xe9.jpg")
    os.mkdir(target + b"/cl\xff")
    shutil.copy(source, target + b"/cl\xff/a.jpg")
    manifest = scan(photo_folder)
    assert set(reasons(manifest)) == {"dog/caf\\udce9.jpg", "cl\\udcff/a.jpg"}
    assert all("UTF-8" in reason for reason in reasons(manifest).values())
    repr(manifest.remarks).encode()
    manifest.fingerprint()
    assert len(manifest) == 15 and manifest.classes == ("cat", "dog", "owl")


def test_a_link_to_where_a_class_lies_does_not_take_in_the_other_classes(photo_folder):
    plain = scan(photo_folder)
    (photo_folder / "cat" / "up").symlink_to("..")
    (photo_folder / "dog" / "root").symlink_to(photo_folder.parent)
    assert scan(photo_folder).paths == plain.paths


def test_links_to_files_and_folders_are_followed_and_loops_end(photo_folder, tmp_path):
    make_photos(tmp_path / "elsewhere", {"fox": 2})
    (photo_folder / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (photo_folder / "cat" / "link.jpg").symlink_to(photo_folder / "dog" / "000.jpg")
    (photo_folder / "cat" / "broken.jpg").symlink_to("nowhere.jpg")
    (photo_folder / "cat" / "self").symlink_to("self")
    (photo_folder / "cat" / "up").symlink_to(photo_folder / "cat")
    (photo_folder / ".a").mkdir()
    (photo_folder / ".a" / ".up").symlink_to(photo_folder / ".a")
    done: list[Manifest] = []
    thread = threading.Thread(target=lambda: done.append(scan(photo_folder)), daemon=True)
    thread.start()
    thread.join(10)
    (manifest,) = done
    assert manifest.classes == ("cat", "dog", "fox", "owl")
    assert manifest.class_counts(UNASSIGNED).tolist() == [6, 4, 2, 6]
    assert reasons(manifest) == {"cat/broken.jpg": "No such file or directory"}
    assert manifest.n_skipped == 1  # the link to itself


def test_special_files_do_not_hang(photo_folder):
    os.mkfifo(photo_folder / "cat" / "pipe.jpg")
    os.mkfifo(photo_folder / "cat" / "pipe")
    (photo_folder / "cat" / "folder.jpg").mkdir()
    manifest = scan(photo_folder)
    assert reasons(manifest) == {"cat/pipe.jpg": "not a regular file"} and manifest.n_skipped == 1


def test_the_pixel_cap_reaches_the_probe(photo_folder):
    photo(0, 0, size=(60, 50)).save(photo_folder / "cat" / "big.png")
    assert "2000" in reasons(scan(photo_folder, max_pixels=2000))["cat/big.png"]


def test_source_files_are_not_touched(photo_folder):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photo_folder.rglob("*.jpg")}
    scan(photo_folder)
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photo_folder.rglob("*") if path.is_file()
    }


def test_scanning_is_fast(tmp_path):
    root = make_photos(tmp_path / "many", {"a": 1, "b": 1})
    for name in ("a", "b"):
        for number in range(1500):
            os.link(root / name / "000.jpg", root / name / f"x{number}.jpg")
    start = time.perf_counter()
    assert len(scan(root)) == 3002
    assert time.perf_counter() - start < 3  # about 0.2 s alone on one core


# ---------------------------------------------------------------- errors of folders


def build_nothing(root: Path) -> None:
    root.mkdir()


def build_one_class(root: Path) -> None:
    make_photos(root, {"only": 3})


def build_flat(root: Path) -> None:
    make_photos(root, {".": 3})


def build_broken(root: Path) -> None:
    write(root / "a/x.jpg")
    write(root / "b/x.jpg")


def build_val_class(root: Path) -> None:
    make_photos(root, {"train/a": 1, "train/b": 1, "val/a": 1, "val/strange": 1})


def build_test_class(root: Path) -> None:
    make_photos(root, {"train/a": 1, "train/b": 1, "test/strange": 1})


def build_unusable_train_class(root: Path) -> None:
    make_photos(root, {"train/a": 1, "train/b": 1, "val/strange": 1})
    write(root / "train/strange/x.jpg")


def build_two_vals(root: Path) -> None:
    make_photos(root, {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1})


def build_flat_splits(root: Path) -> None:
    make_photos(root, {"train": 1, "val": 1})


def build_flat_val(root: Path) -> None:
    make_photos(root, {"train/a": 1, "train/b": 1, "val": 1})


def build_text_file(root: Path) -> None:
    write(root)


@pytest.mark.parametrize(
    ("build", "hint"),
    [
        (lambda root: None, "does not exist"),
        (build_text_file, "neither a folder nor a .csv"),
        (build_nothing, "no class"),
        (build_flat, "not in a class folder"),
        (build_one_class, "'only'"),
        (build_broken, "none of 2 image files"),
        (build_val_class, "'strange' has images in val"),
        (build_test_class, "'strange' has images in test"),
        (build_unusable_train_class, "'strange'"),
        (build_two_vals, "both val/ and valid/"),
        (build_flat_splits, "train, val"),
        (build_flat_val, "no class folders"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, build, hint):
    build(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        scan(tmp_path / "data")
    assert hint in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path / "data") in str(caught.value)


def test_a_folder_that_cannot_be_listed(photo_folder, monkeypatch):
    scandir = os.scandir

    def deny(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match="dog: cannot list the folder: Permission denied"):
        scan(photo_folder)


# ---------------------------------------------------------------- CSV


def test_a_csv_with_splits(photo_folder, tmp_path):
    outside = image(tmp_path / "outside" / "o.png")
    file = listing(
        photo_folder,
        "\ufeffPath , LABEL,split,note\ncat/000.jpg,cat,train,a\n./cat/001.jpg, cat ,VAL,b\ndog/000.jpg,dog,,c\n\n"
        f"{outside},dog,valid,d\n../outside/o.png,dog,validation,same file\ndog/001.jpg,,test,e\ncat/002.jpg,cat,test\n"
        "cat/002.jpg,cat,test,repeat\ngone.jpg,cat,train,f\n",
    )
    manifest = scan(file)
    assert manifest.classes == ("cat", "dog") and manifest.root == photo_folder
    assert split_of(manifest) == {
        "cat/000.jpg": TRAIN, "cat/001.jpg": VAL, "dog/000.jpg": TRAIN,
        str(outside): VAL, "dog/001.jpg": TEST, "cat/002.jpg": TEST,
    }  # fmt: skip
    assert manifest.labels[manifest.paths.index("dog/001.jpg")] == -1
    assert reasons(manifest) == {"gone.jpg": "No such file or directory"}
    assert len(manifest.remarks) == 1 and manifest.remarks[0].startswith("2 rows")
    assert manifest.file(manifest.paths.index(str(outside))).is_file()


@pytest.mark.parametrize("split", ["", "train"])
def test_a_csv_without_val_rows_is_left_to_be_split(photo_folder, split):
    manifest = scan(listing(photo_folder, f"path,label,split\ncat/000.jpg,1,{split}\ndog/000.jpg,10,{split}\n"))
    assert set(split_of(manifest).values()) == {UNASSIGNED} and manifest.classes == ("1", "10")


def test_a_csv_with_quoted_names_and_things_that_are_no_images(photo_folder):
    image(photo_folder / 'a, "b"\nc.png')
    write(photo_folder / "text.txt")
    file = listing(photo_folder, 'path,label\n"a, ""b""\nc.png",x\ncat/000.jpg,y\ntext.txt,y\ncat,y\nnul\0.jpg,y\n')
    manifest = scan(file)
    assert manifest.paths == ('a, "b"\nc.png', "cat/000.jpg")
    assert set(reasons(manifest)) == {"text.txt", "cat", "nul\0.jpg"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "first line"),
        ("file,class\na,b\n", "['file', 'class']"),
        ("path;label\na;b\n", "first line"),
        ("path,label\ncat/000.jpg,\n", "line 2: the label is empty"),
        ("path,label\ncat/000.jpg\n", "line 2: the label is empty"),
        ("path,label\n,cat\n", "line 2: the path is empty"),
        ("path,label,split\ncat/000.jpg,cat,dev\n", "line 2: split 'dev'"),
        ("path,label\ncat/000.jpg,cat\ndog/000.jpg,dog\n./cat/000.jpg,dog\n", "lines 2 and 4"),
        ("path,label,split\ncat/000.jpg,cat,train\ncat/000.jpg,cat,val\n", "lines 2 and 3"),
        ("path,label,split\ncat/000.jpg,cat,train\ndog/000.jpg,dog,train\nowl/000.jpg,owl,val\n", "'owl'"),
        ("path,label\ncat/000.jpg,cat\n", "only one class, 'cat'"),
        ("path,label\n", "no class"),
        ("path,label\ngone.jpg,a\nlost.jpg,b\n", "none of 2"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "cannot be read as CSV"),
    ],
)
def test_csv_files_that_are_no_data_set(photo_folder, text, hint):
    with pytest.raises(DataError) as caught:
        scan(listing(photo_folder, text))
    assert hint in str(caught.value) and "\n" not in str(caught.value) and "list.csv" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_csv_in_another_encoding(photo_folder, encoding):
    with pytest.raises(DataError, match="save it as UTF-8"):
        scan(listing(photo_folder, "path,label\ncat/000.jpg,käse\n", encoding))


# ---------------------------------------------------------------- flat


def test_a_flat_folder_is_unlabelled_and_recursive(photo_folder):
    write(photo_folder / "cat" / "broken.jpg")
    write(photo_folder / "notes.txt")
    manifest = scan_flat(photo_folder)
    assert manifest.classes == () and len(manifest) == 15
    assert set(manifest.labels.tolist()) == {-1} and set(manifest.splits.tolist()) == {UNASSIGNED}
    assert manifest.n_scanned == n_files(photo_folder) == 17


def test_flat_errors(tmp_path):
    write(tmp_path / "only" / "text.txt")
    for path, hint in (
        (tmp_path / "only", "no image"),
        (tmp_path / "gone", "exist"),
        (tmp_path / "only/text.txt", "no folder"),
    ):
        with pytest.raises(DataError, match=hint):
            scan_flat(path)
