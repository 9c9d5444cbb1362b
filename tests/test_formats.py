"""Formats on real files: recognised, ordered, and every kind of damage found, with no sound model blamed."""

from __future__ import annotations

import json
import os
import posixpath
import struct
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stager.core.formats import check_weight, detect, is_weight
from stager.core.model import FileEntry
from stager.core.select import is_partial_download, left_out, selected
from tests import models

FILLER = models.Filler(7)
TENSORS = [("a.weight", (4, 8)), ("b.weight", (16,)), ("c.weight", (2, 4, 8))]


class Tree:
    """The files below a folder, as a caller of the formats sees them."""

    def __init__(self, root):
        self.root = os.fspath(root)
        self.entries = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                self.entries.append(FileEntry(os.path.relpath(path, self.root), os.path.getsize(path)))
        self.reads = []

    def read(self, index, offset, length):
        self.reads.append((index, offset, length))
        with open(os.path.join(self.root, self.entries[index].path), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def detect(self, **options):
        model = detect(self.entries, self.read, **options)
        assert sorted(model.order) == list(range(len(self.entries)))
        assert set(model.weights) <= set(model.order)
        return model

    def order(self):
        return [self.entries[index].path for index in self.detect().order]

    def weights(self):
        return [self.entries[index].path for index in self.detect().weights]

    def proven(self, **options):
        return {d.path: d.what for d in self.detect(**options).defects if d.proven}

    def remarks(self):
        return {d.path: d.what for d in self.detect().defects if not d.proven}

    def check(self, path):
        index = next(i for i, entry in enumerate(self.entries) if entry.path == path)
        return check_weight(self.entries[index], index, self.read)

    def corrupt(self):
        checked = [self.check(entry.path) for entry in self.entries]
        return {d.path: d.what for defects in checked for d in defects if d.proven}


def make(root, form, shards=4, size=200_000):
    models.make(os.fspath(root), form, size, shards, FILLER)
    return Tree(root)


def put(root, path, data=b"\x80\x02xyz"):
    target = os.path.join(os.fspath(root), path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(data if isinstance(data, bytes) else json.dumps(data).encode())


def tensors(root, path, named=TENSORS):
    models.write_safetensors(os.path.join(os.fspath(root), path), named, FILLER)


def gguf(root, path, named=TENSORS, **options):
    models.write_gguf(os.path.join(os.fspath(root), path), {"general.name": "x"}, named, FILLER, **options)


def remove(root, path):
    os.unlink(os.path.join(os.fspath(root), path))


def cut(root, path, count):
    target = os.path.join(os.fspath(root), path)
    os.truncate(target, os.path.getsize(target) - count)


# Formats and order


@pytest.mark.parametrize("form", models.FORMATS)
def test_a_sound_model_has_no_defect(tmp_path, form):
    tree = make(tmp_path, form)
    assert tree.detect().defects == ()
    assert tree.corrupt() == {}
    for entry in tree.entries:
        assert tree.check(entry.path) == ()


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("safetensors", ("safetensors",)),
        ("single", ("safetensors",)),
        ("gguf", ("gguf",)),
        ("gguf-split", ("gguf",)),
        ("pytorch", ("pytorch",)),
        ("diffusers", ("diffusers", "safetensors")),
    ],
)
def test_formats_are_recognised(tmp_path, form, names):
    assert make(tmp_path, form).detect().names == names


def test_an_empty_tree_and_a_tree_without_weights_are_unknown(tmp_path):
    assert detect([], lambda *_: b"").names == ("unknown",)
    put(tmp_path, "notes.txt")
    assert Tree(tmp_path).detect().names == ("unknown",)


def test_small_files_come_first_then_shards_in_order_then_the_rest(tmp_path):
    make(tmp_path, "safetensors", shards=12, size=2_000_000)
    put(tmp_path, "README.md")
    put(tmp_path, "figures/benchmark.png")
    put(tmp_path, "modeling_x.py")
    order = Tree(tmp_path).order()
    shards = [f"model-{number:05d}-of-00012.safetensors" for number in range(1, 13)]
    assert order[6:18] == shards
    assert {"config.json", "tokenizer.json", "modeling_x.py", "model.safetensors.index.json"} <= set(
        order[:6]
    )
    assert set(order[18:]) == {"README.md", "figures/benchmark.png"}


def test_shard_numbers_sort_as_numbers(tmp_path):
    names = [f"model-{number}-of-11.safetensors" for number in range(1, 12)]
    for name in names:
        tensors(tmp_path, name)
    put(tmp_path, "model.safetensors.index.json", {"weight_map": {name: name for name in names}})
    assert Tree(tmp_path).weights() == names


def test_copies_that_engines_skip_come_last(tmp_path):
    make(tmp_path, "safetensors", shards=2)
    put(tmp_path, "pytorch_model.bin")
    put(tmp_path, "original/consolidated.00.pth")
    put(tmp_path, "README.md")
    tensors(tmp_path, "consolidated.safetensors")
    tree = Tree(tmp_path)
    assert tree.weights() == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert tree.order()[-4:-3] == ["README.md"]
    assert set(tree.order()[-3:]) == {
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "consolidated.safetensors",
    }
    assert tree.proven() == {}
    assert "pytorch_model.bin" in tree.remarks()


def test_a_mistral_folder_with_only_the_consolidated_copy_loads_it(tmp_path):
    tensors(tmp_path, "consolidated.safetensors")
    assert Tree(tmp_path).weights() == ["consolidated.safetensors"]


def test_different_models_in_one_folder_are_no_copies_of_each_other(tmp_path):
    tensors(tmp_path, "dream.safetensors")
    put(tmp_path, "dream.ckpt")
    put(tmp_path, "other.ckpt")
    assert Tree(tmp_path).weights() == ["dream.safetensors", "other.ckpt"]


def test_diffusers_components_load_in_the_order_of_the_pipeline(tmp_path):
    make(tmp_path, "diffusers")
    tensors(tmp_path, "single-file.safetensors")
    put(
        tmp_path,
        "model_index.json",
        {"_class_name": "X", **{n: ["diffusers", "Y"] for n in ("vae", "transformer", "text_encoder")}},
    )
    tree = Tree(tmp_path)
    folders = list(dict.fromkeys(posixpath.dirname(path) for path in tree.weights()))
    assert folders == ["vae", "transformer", "text_encoder"]
    assert tree.order()[-1] == "single-file.safetensors"


def test_a_missing_component_is_a_remark_and_a_null_one_is_nothing(tmp_path):
    put(tmp_path, "model_index.json", {"vae": ["diffusers", "V"], "unet": ["a", "b"], "image": [None, None]})
    tensors(tmp_path, "vae/diffusion_pytorch_model.safetensors")
    tree = Tree(tmp_path)
    assert set(tree.remarks()) == {"unet"}
    assert tree.proven() == {}


def test_several_models_in_one_tree_are_judged_each_by_itself(tmp_path):
    make(tmp_path / "a", "safetensors")
    make(tmp_path / "b", "gguf-split")
    make(tmp_path / "c" / "d", "pytorch")
    remove(tmp_path, "b/model-f16-00002-of-00004.gguf")
    tree = Tree(tmp_path)
    assert tree.detect().names == ("safetensors", "gguf", "pytorch")
    assert set(tree.proven()) == {"b/model-f16-00002-of-00004.gguf"}
    folders = list(dict.fromkeys(posixpath.dirname(path) for path in tree.weights()))
    assert folders == ["a", "b", "c/d"]


def test_the_projector_loads_after_its_model(tmp_path):
    for name in ("zeta-q4.gguf", "mmproj-f16.gguf", "alpha-q4.gguf"):
        gguf(tmp_path, name)
    assert Tree(tmp_path).weights() == ["alpha-q4.gguf", "zeta-q4.gguf", "mmproj-f16.gguf"]


def test_two_formats_in_one_folder_are_a_remark(tmp_path):
    make(tmp_path, "single")
    gguf(tmp_path, "x.gguf")
    tree = Tree(tmp_path)
    assert set(tree.remarks()) == {"x.gguf"}
    assert tree.proven() == {}


# Provable incompleteness


def test_an_index_that_names_a_missing_shard_is_proven(tmp_path):
    make(tmp_path, "safetensors")
    remove(tmp_path, "model-00002-of-00004.safetensors")
    found = Tree(tmp_path).proven()
    assert list(found) == ["model-00002-of-00004.safetensors"]
    assert "1 of 4" in found["model-00002-of-00004.safetensors"]
    assert Tree(tmp_path).proven(whole=False) == {}


def test_a_pytorch_index_that_names_a_missing_shard_is_proven_unless_safetensors_are_there(tmp_path):
    make(tmp_path, "pytorch")
    remove(tmp_path, "pytorch_model-00003-of-00004.bin")
    assert set(Tree(tmp_path).proven()) == {"pytorch_model-00003-of-00004.bin"}
    make(tmp_path, "single")
    tree = Tree(tmp_path)
    assert tree.proven() == {}
    assert "pytorch_model-00003-of-00004.bin" in tree.remarks()


def test_pickles_do_not_stand_in_for_missing_safetensors(tmp_path):
    make(tmp_path, "safetensors")
    make(tmp_path, "pytorch")
    remove(tmp_path, "model-00004-of-00004.safetensors")
    assert set(Tree(tmp_path).proven()) == {"model-00004-of-00004.safetensors"}


def test_an_index_alone_is_proven_only_where_no_other_weights_are(tmp_path):
    make(tmp_path, "safetensors")
    for number in range(1, 5):
        remove(tmp_path, f"model-0000{number}-of-00004.safetensors")
    assert len(Tree(tmp_path).proven()) == 1
    gguf(tmp_path, "Q4_K_M/x.gguf")
    tree = Tree(tmp_path)
    assert tree.proven() == {}
    assert len(tree.remarks()) == 1


def test_a_whole_copy_of_the_same_model_spares_an_incomplete_one(tmp_path):
    make(tmp_path, "single")
    models.save_sharded(os.fspath(tmp_path), "consolidated", TENSORS, 3, FILLER)
    remove(tmp_path, "consolidated-00002-of-00003.safetensors")
    assert Tree(tmp_path).proven() == {}
    remove(tmp_path, "model.safetensors")
    assert set(Tree(tmp_path).proven()) == {"consolidated-00002-of-00003.safetensors"}


def test_a_variant_with_its_own_index_leaves_the_plain_model_in_use(tmp_path):
    tensors(tmp_path, "model.safetensors")
    names = models.save_sharded(os.fspath(tmp_path), "model.fp16", TENSORS, 2, FILLER)
    remove(tmp_path, "model.fp16.safetensors.index.json")
    index = {"weight_map": {name: name for name in names}}
    put(tmp_path, "model.safetensors.index.fp16.json", index)
    tree = Tree(tmp_path)
    assert tree.weights() == ["model.safetensors", *names]
    assert tree.detect().defects == ()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"metadata": {}}', b'{"weight_map": {"a": 1}}', b"\xff"]
)
def test_an_unusable_index_is_proven(tmp_path, data):
    make(tmp_path, "safetensors")
    put(tmp_path, "model.safetensors.index.json", data)
    assert set(Tree(tmp_path).proven()) == {"model.safetensors.index.json"}


def test_an_unusable_pipeline_index_is_proven(tmp_path):
    make(tmp_path, "diffusers")
    put(tmp_path, "model_index.json", b"<html>")
    assert set(Tree(tmp_path).proven()) == {"model_index.json"}


def test_an_index_that_points_outside_its_model_is_not_judged(tmp_path):
    put(tmp_path, "model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}})
    assert Tree(tmp_path).detect().defects == ()


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_a_gguf_split_with_a_hole_is_proven(tmp_path, lost):
    make(tmp_path, "gguf-split")
    remove(tmp_path, f"model-f16-0000{lost}-of-00004.gguf")
    found = Tree(tmp_path).proven()
    assert list(found) == [f"model-f16-0000{lost}-of-00004.gguf"]
    assert "1 of 4" in found[f"model-f16-0000{lost}-of-00004.gguf"]


def test_a_hole_in_numbered_safetensors_counts_only_without_an_index(tmp_path):
    for number in (1, 3, 4):
        tensors(tmp_path, f"model-0000{number}-of-00004.safetensors")
    assert set(Tree(tmp_path).proven()) == {"model-00002-of-00004.safetensors"}
    names = [f"model-0000{number}-of-00004.safetensors" for number in (1, 3, 4)]
    put(tmp_path, "model.safetensors.index.json", {"weight_map": {name: name for name in names}})
    assert Tree(tmp_path).proven() == {}


def test_sets_that_count_from_zero_are_whole(tmp_path):
    for number in range(3):
        tensors(tmp_path, f"model-0000{number}-of-00003.safetensors")
    assert Tree(tmp_path).detect().defects == ()


def test_a_hole_in_a_set_that_counts_from_zero_is_proven(tmp_path):
    for number in (0, 2):
        tensors(tmp_path, f"model-0000{number}-of-00003.safetensors")
    assert set(Tree(tmp_path).proven()) == {"model-00001-of-00003.safetensors"}


def test_a_number_beyond_its_total_is_no_part_of_a_set(tmp_path):
    gguf(tmp_path, "x-00003-of-00002.gguf")
    assert Tree(tmp_path).detect().defects == ()


def test_shards_of_an_older_upload_beside_an_index_are_a_remark(tmp_path):
    make(tmp_path, "safetensors")
    tensors(tmp_path, "model-00003-of-00007.safetensors")
    tree = Tree(tmp_path)
    assert tree.proven() == {}
    assert set(tree.remarks()) == {"model-00003-of-00007.safetensors"}
    assert "model-00003-of-00007.safetensors" not in tree.weights()


def test_zero_length_is_proven_for_what_engines_load_and_said_once(tmp_path):
    put(tmp_path, "model.safetensors", b"")
    put(tmp_path, "optimizer.pt", b"")
    tree = Tree(tmp_path)
    assert set(tree.proven()) == {"model.safetensors"}
    assert tree.check("model.safetensors") == tree.detect().defects
    tensors(tmp_path, "model.safetensors")
    put(tmp_path, "pytorch_model.bin", b"")
    tree = Tree(tmp_path)
    assert tree.proven() == {}
    assert "pytorch_model.bin" in tree.remarks()


def test_partial_downloads_are_no_shards(tmp_path):
    make(tmp_path, "safetensors")
    source = tmp_path / "model-00002-of-00004.safetensors"
    source.rename(f"{source}.incomplete")
    assert set(Tree(tmp_path).proven()) == {"model-00002-of-00004.safetensors"}


def test_a_reader_s_error_is_passed_on(tmp_path):
    tree = make(tmp_path, "safetensors")

    def broken(index, offset, length):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        detect(tree.entries, broken)
    with pytest.raises(OSError, match="Input/output"):
        check_weight(FileEntry("model.safetensors", 10), 0, broken)


# Single files


def judge(name, data, size=None):
    def read(index, offset, length):
        return data[offset : offset + length]

    return check_weight(FileEntry(name, len(data) if size is None else size), 0, read)


def header(tensors_json, body=b"", pad=0):
    raw = tensors_json if isinstance(tensors_json, bytes) else json.dumps(tensors_json).encode()
    raw += b" " * pad
    return struct.pack("<Q", len(raw)) + raw + body


def tensor(start, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    tensors(root, "x.safetensors")
    gguf(root, "x.gguf")
    gguf(root, "big-endian.gguf", order=">")
    gguf(root, "aligned.gguf", alignment=64, named=[("a.weight", (4, 8))])
    models.write_torch(os.fspath(root / "x.pt"), TENSORS, FILLER)
    return {name: (root / name).read_bytes() for name in os.listdir(root)}


COUNTED = ["x.safetensors", "x.gguf", "big-endian.gguf", "aligned.gguf"]


@pytest.mark.parametrize("name", [*COUNTED, "x.pt"])
def test_every_truncation_is_proven(sound, name):
    data = sound[name]
    assert judge(name, data) == ()
    for length in range(4 if name == "x.pt" else 0, len(data)):
        assert [d.proven for d in judge(name, data[:length])] == [True], length


@given(st.sampled_from(COUNTED), st.binary(min_size=1, max_size=200))
def test_every_extension_is_found_and_refused_where_loaders_refuse_it(sound, name, more):
    found = judge(name, sound[name] + more)
    assert [d.proven for d in found] == [name.endswith(".safetensors")]


SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=4).map(tuple), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, st.data())
def test_a_valid_file_is_never_blamed_and_a_shorter_one_always(tmp_path, shapes, data):
    named = [(f"t{number}", shape) for number, shape in enumerate(shapes)]
    tensors(tmp_path, "m.safetensors", named)
    gguf(tmp_path, "m.gguf", named)
    for name in ("m.safetensors", "m.gguf"):
        whole = (tmp_path / name).read_bytes()
        assert judge(name, whole) == ()
        length = data.draw(st.integers(0, len(whole) - 1))
        found = judge(name, whole[:length])
        # The padding behind the last GGUF tensor is nothing a loader needs.
        if name == "m.safetensors" or length <= len(whole) - 32:
            assert [d.proven for d in found] == [True]


@pytest.mark.parametrize(
    "data",
    [
        header(b"{"),
        header(b"[]"),
        header(b"\xff\xfe"),
        header({"a": 1}),
        header({"a": {"dtype": "U8", "shape": [1]}}, b"x"),
        header({"a": tensor(0, 4, shape=[-4])}, b"1234"),
        header({"a": tensor(0, 4, shape=[5])}, b"1234"),
        header({"a": tensor(0, 4), "b": tensor(5, 8)}, b"12345678"),
        header({"a": tensor(0, 4), "b": tensor(2, 8)}, b"12345678"),
        header({"a": tensor(1, 4)}, b"1234"),
        header({"__metadata__": {"a": 1}, "b": tensor(0, 1)}, b"1"),
        header(b"[" * 100_000),
        struct.pack("<Q", 100_000_001) + b"{}",
        b"\0" * 4096,
    ],
)
def test_safetensors_headers_that_the_library_refuses_are_proven(data):
    assert [d.proven for d in judge("model.safetensors", data)] == [True]


@pytest.mark.parametrize(
    "data",
    [
        header({}),
        header({"__metadata__": {"format": "pt"}}, pad=9),
        header({"b": tensor(4, 8), "a": tensor(0, 4)}, b"12345678"),
        header({"a": tensor(0, 0), "b": tensor(0, 4)}, b"1234"),
        header({"a": tensor(0, 3, shape=[2, 3], dtype="F4")}, b"123"),
        header({"a": tensor(0, 3, shape=[99], dtype="TYPE_OF_2030")}, b"123"),
        header({"a": tensor(0, 8, shape=[], dtype="F64")}, b"12345678"),
    ],
)
def test_safetensors_headers_that_the_library_takes_are_sound(data):
    assert judge("model.safetensors", data) == ()


@pytest.mark.parametrize("name", ["model.safetensors", "x.gguf", "pytorch_model.bin", "x.pt"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 4976698672\n", "git-lfs"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error message"),
    ],
)
def test_pointers_and_error_pages_are_named_for_what_they_are(name, data, words):
    found = judge(name, data)
    assert [d.proven for d in found] == [True]
    assert words in found[0].what


def test_a_gguf_file_with_another_magic_is_proven():
    assert judge("x.gguf", b"GGJT" + b"\0" * 100)[0].proven
    assert "zero" in judge("x.gguf", b"\0" * 100)[0].what


@pytest.mark.parametrize("version", [1, 4, 0x01000000, 77])
def test_other_gguf_versions_are_not_judged(version):
    assert judge("x.gguf", b"GGUF" + struct.pack("<I", version) + b"\xff" * 40) == ()


def test_an_unknown_ggml_type_counts_up_to_its_last_tensor_only(tmp_path):
    gguf(tmp_path, "x.gguf", kind=99)
    data = (tmp_path / "x.gguf").read_bytes()
    last = 2 * 2 * 4 * 8
    assert judge("x.gguf", data + b"more") == ()
    assert judge("x.gguf", data[:-last]) == ()
    assert [d.proven for d in judge("x.gguf", data[: -last - 1])] == [True]


def test_a_size_table_that_does_not_fit_the_file_is_not_believed(tmp_path):
    # As in a fork that gave a known number to a smaller type: offsets half as far apart as F32 would need.
    gguf(tmp_path, "x.gguf", kind=0)
    assert judge("x.gguf", (tmp_path / "x.gguf").read_bytes()) == ()


def test_counts_that_no_file_can_hold_end_at_once():
    began = time.monotonic()
    for where in (8, 16):
        data = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\0" * 64)
        data[where : where + 8] = struct.pack("<Q", 2**60)
        assert judge("x.gguf", bytes(data), size=None)[0].proven
    assert time.monotonic() - began < 1


def test_a_large_vocabulary_takes_less_than_half_a_second(tmp_path):
    words = [f"token number {number}" for number in range(150_000)]
    metadata = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": [0.0] * 150_000, "merges": words}
    models.write_gguf(os.fspath(tmp_path / "x.gguf"), metadata, TENSORS, FILLER)
    tree = Tree(tmp_path)
    began = time.process_time()
    assert tree.check("x.gguf") == ()
    assert time.process_time() - began < 0.5
    offsets = [offset for _, offset, _ in tree.reads]
    assert offsets == sorted(offsets)
    assert len(offsets) < 20


def test_a_header_is_read_once_from_the_front_and_the_weights_not_at_all(tmp_path):
    tree = make(tmp_path, "single", size=30_000_000)
    assert tree.check("model.safetensors") == ()
    assert [(offset, length) for _, offset, length in tree.reads] == [(0, 256 << 10)]


def test_a_header_larger_than_the_library_takes_is_not_read():
    reads = []

    def read(index, offset, length):
        reads.append(length)
        return struct.pack("<Q", 100_000_001) + b" " * (length - 8)

    found = check_weight(FileEntry("model.safetensors", 1 << 30), 0, read)
    assert [d.proven for d in found] == [True]
    assert len(reads) == 1


def test_more_strings_than_the_file_has_room_for_are_not_walked():
    start = (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 8, 1 << 40)
    )
    reads = []

    def read(index, offset, length):
        reads.append(length)
        return start + bytes(length - len(start)) if offset == 0 else bytes(length)

    found = check_weight(FileEntry("x.gguf", 1 << 30), 0, read)
    assert [d.proven for d in found] == [True]
    assert len(reads) == 1


def test_an_unwritten_file_is_called_that():
    assert "unfinished download" in judge("model.safetensors", bytes(4096))[0].what
    assert "unfinished download" in judge("x.gguf", bytes(4096))[0].what


def test_legacy_pickles_and_other_runtimes_files_are_not_judged():
    assert judge("pytorch_model.bin", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." * 9) == ()
    assert judge("model.ckpt", b"anything") == ()
    assert judge("openvino_model.bin", b"") == ()


def test_a_file_that_ends_early_is_a_remark():
    found = judge("model.safetensors", header({"a": tensor(0, 4)}, b"1234")[:-20], size=5000)
    assert [d.proven for d in found] == [False]
    assert "being changed" in found[0].what


def test_a_reader_that_gives_a_byte_at_a_time_is_read_to_the_end(sound):
    data = sound["x.gguf"]
    assert check_weight(FileEntry("x.gguf", len(data)), 0, lambda _i, o, _n: data[o : o + 1]) == ()


@given(st.sampled_from(["x.safetensors", "x.gguf", "x.bin"]), st.binary(max_size=300))
def test_no_bytes_raise(name, data):
    judge(name, data)


@given(st.data())
def test_no_damaged_header_raises(sound, data):
    name = data.draw(st.sampled_from(COUNTED))
    raw = bytearray(sound[name])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    judge(name, bytes(raw))


# Properties of the whole


STEMS = ["model", "pytorch_model", "consolidated", "x", "model.fp16", "optimizer", "model_index", "config"]
ENDS = [
    ".safetensors",
    ".bin",
    ".gguf",
    ".pt",
    ".json",
    ".safetensors.index.json",
    ".bin.index.json",
    "",
    ".md",
]
PARTS = ["", "-00001-of-00002", "-00002-of-00002", "-00000-of-00002", "-3-of-2", "-1-of-999999"]
FOLDERS = ["", "a/", "original/", "vae/", "a/original/", "a//", "./"]
LIKELY = st.builds("{}{}{}{}".format, *map(st.sampled_from, (FOLDERS, STEMS, PARTS, ENDS)))
PATHS = st.one_of(LIKELY, st.text(min_size=1, max_size=30)).filter(
    lambda p: "\0" not in p and not p.startswith("/") and ".." not in p.split("/")
)
BODIES = st.sampled_from(
    [b"", b"{}", b"{", b'{"vae": ["a", "b"]}', b'{"weight_map": {"a": "model.safetensors", "b": "a/x.bin"}}']
)


@given(st.dictionaries(PATHS, BODIES, max_size=12))
def test_order_is_a_permutation_whatever_the_names(files):
    bodies = list(files.values())
    entries = [FileEntry(path, len(body)) for path, body in files.items()]
    model = detect(entries, lambda index, offset, length: bodies[index][offset : offset + length])
    assert sorted(model.order) == list(range(len(entries)))
    assert len(set(model.weights)) == len(model.weights)
    assert detect(entries, lambda *_: b"", whole=False).names
    lost = [d for d in model.defects if d.what.startswith("missing")]
    assert all(d.path not in files for d in lost)


@given(st.permutations(range(9)))
def test_the_order_does_not_depend_on_the_order_of_listing(turn):
    paths = [
        "config.json",
        "b/model.safetensors",
        "a/model.safetensors",
        "a/config.json",
        "x.gguf",
        "README.md",
    ]
    paths += ["a/model.fp16.safetensors", "pytorch_model.bin", "z.onnx"]
    mixed = [paths[i] for i in turn]
    model = detect([FileEntry(path, 5) for path in mixed], lambda *_: b"")
    plain = detect([FileEntry(path, 5) for path in paths], lambda *_: b"")
    assert [mixed[i] for i in model.order] == [paths[i] for i in plain.order]


def test_a_hundred_thousand_files_are_ordered_quickly():
    entries = [FileEntry(f"run{number // 10}/model-{number}.safetensors", 9) for number in range(100_000)]
    began = time.process_time()
    assert len(detect(entries, lambda *_: b"").weights) == 100_000
    assert time.process_time() - began < 15


@pytest.mark.parametrize(
    ("path", "weight"),
    [
        ("model.safetensors", True),
        ("a/b/X.GGUF", True),
        ("pytorch_model.bin", True),
        ("training_args.bin", False),
        ("optimizer.pt", False),
        ("rng_state_0.pth", False),
        ("model.safetensors.index.json", False),
        ("tokenizer.model", False),
        ("model.safetensors.incomplete", False),
        ("._____temp/model.safetensors", False),
    ],
)
def test_weights_are_told_by_name(path, weight):
    assert is_weight(path) is weight


# Selection


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("model.safetensors", False),
        (".gitattributes", False),
        ("digit/.gitignore", False),
        (".stager/manifest.json", True),
        ("a/.git/config", True),
        (".cache/huggingface/download/config.json.metadata", True),
        (".cache/other/config.json", False),
        ("._____temp/model.safetensors", True),
        ("model.safetensors.incomplete", True),
        ("model.gguf.part", True),
        ("model.gguf.aria2", True),
        ("model.gguf.crdownload", True),
        ("model.lock", True),
        (".locks/x", True),
        ("lost+found/x", True),
        ("parts/part.bin", False),
    ],
)
def test_what_is_always_left_out(path, out):
    assert (left_out(path) is not None) is out


def test_partial_downloads_are_told_by_name():
    assert is_partial_download("a/x.bin.part")
    assert not is_partial_download("a/x.lock")


@pytest.mark.parametrize(
    ("path", "glob", "match"),
    [
        ("model.safetensors", "*.safetensors", True),
        ("a/b/model.safetensors", "*.safetensors", True),
        ("a/b/model.safetensors", "model*", True),
        ("a/b/c.bin", "a/*", True),
        ("a/b/c.bin", "a/", True),
        ("ab/c.bin", "a/", False),
        ("c.bin", "**/c.bin", True),
        ("a/b/c.bin", "**/c.bin", True),
        ("xc.bin", "**/c.bin", False),
        ("a/c.bin", "a/**/c.bin", True),
        ("a/x/y/c.bin", "a/**/c.bin", True),
        ("./c.bin".removeprefix("./"), "./c.bin", True),
        ("Model.bin", "model.bin", False),
        ("m1.bin", "m[0-9].bin", True),
        ("mx.bin", "m[!0-9].bin", True),
        ("m1.bin", "m[!0-9].bin", False),
        ("m[.bin", "m[.bin", True),
        ("m1.bin", "m[9-0].bin", False),
        ("m1.bin", "m?.bin", True),
        ("two\nlines.bin", "two*.bin", True),
        ("bad\udcff.bin", "bad?.bin", True),
    ],
)
def test_globs(path, glob, match):
    assert selected(path, [glob], []) is match
    assert selected(path, [], [glob]) is not match


NAMES = st.text(st.sampled_from("ab/*?[]!-.x\n\udcff"), min_size=1, max_size=12)


@given(NAMES, st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=3))
def test_exclude_wins_and_an_empty_include_takes_all(path, include, exclude):
    assert selected(path, [], []) is True
    kept = selected(path, include, exclude)
    assert kept == (selected(path, include, []) and selected(path, [], exclude))
    assert selected(path, ["*"], []) is True
    assert selected(path, ["*"], ["*"]) is False


@given(st.text(st.sampled_from("ab/.x\n\udcff"), min_size=1, max_size=12))
def test_a_path_selects_itself(path):
    plain = posixpath.normpath(path).lstrip("/")  # as a walk spells it
    if plain:
        assert selected(plain, [plain], []) is True


# The script


def test_make_model_makes_the_size_it_is_asked_for_and_the_same_bytes_again(tmp_path):
    for name in ("a", "b"):
        command = [sys.executable, "scripts/make-model", os.fspath(tmp_path / name)]
        subprocess.run([*command, "--size", "3MiB", "--shards", "3", "--seed", "5"], check=True)
    one, two = Tree(tmp_path / "a"), Tree(tmp_path / "b")
    total = sum(one.entries[i].size for i in one.detect().weights)
    assert abs(total - (3 << 20)) < 0.05 * (3 << 20)
    assert len(one.weights()) == 3
    for entry in one.entries:
        assert (tmp_path / "a" / entry.path).read_bytes() == (tmp_path / "b" / entry.path).read_bytes()
    assert one.detect().names == two.detect().names == ("safetensors",)


def test_make_model_leaves_holes_on_request(tmp_path):
    command = [sys.executable, "scripts/make-model", os.fspath(tmp_path), "--size", "20GiB", "--sparse"]
    subprocess.run(command, check=True)
    tree = Tree(tmp_path)
    assert tree.detect().defects == ()
    assert tree.corrupt() == {}
    used = sum(os.stat(tmp_path / entry.path).st_blocks * 512 for entry in tree.entries)
    assert used < 1 << 20
