"""Reading weight files: nothing in them runs, and what is damaged or not plausible is refused."""

import argparse
import functools
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils import load_checkpoint
from dassl.utils.restricted_unpickler import Inert
from tests.dassl.torch_files import flip_bit_in, forge, live_checkpoint, members_of, write_archive

REFUSED = "is not a readable checkpoint"


def refused(path, reason):
    """Expect one line that names the file and the reason."""
    with pytest.raises(ValueError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f'"{path}" ')
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- what has to load


@pytest.mark.parametrize("protocol", [2, 4])
def test_live_schedulers_become_inert(tmp_path, protocol):
    path = tmp_path / "model.pth.tar-3"
    saved = live_checkpoint()
    torch.save(saved, path, pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loaded = load_checkpoint(path)
    for key, value in saved["state_dict"].items():
        got = loaded["state_dict"][key]
        assert (got.dtype, got.shape) == (value.dtype, value.shape), key
        assert torch.equal(got, value), key
    assert loaded["epoch"] == 3
    assert isinstance(loaded["scheduler"]["successor"], Inert)
    assert loaded["scheduler"]["warmup_epoch"] == 1
    momentum = loaded["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, saved["optimizer"]["state"][0]["momentum_buffer"])
    assert loaded["set"] == {1, 2}
    assert loaded["raw"] == b"bytes"


class Tagged(nn.Parameter):
    """A parameter with an attribute, which PyTorch saves in another way."""


def test_what_released_checkpoints_hold_besides_tensors(tmp_path):
    counts = defaultdict(list)
    counts["a"].append(1)
    tagged = Tagged(torch.ones(2))
    tagged.note = "kept nowhere"
    extra = {
        "val_result": np.float64(0.5),
        "array": np.arange(3),
        "options": argparse.Namespace(seed=1),
        "cfg": CfgNode({"A": 1}),
        "path": Path("a"),
        "partial": functools.partial(print, 1),
        "model": nn.Linear(2, 2),
        "cast": torch.float16,
        "device": torch.device("cpu"),
        "large": 2**80,
    }
    plain = {"counts": counts, "size": torch.Size([2, 3]), "order": OrderedDict(b=1), "no": None}
    state = {"w": torch.arange(4.0)[1::2], "tagged": tagged, "u16": torch.ones(2).to(torch.uint16)}
    torch.save({"state_dict": state, **plain, **extra}, tmp_path / "file")
    loaded = load_checkpoint(tmp_path / "file")
    assert loaded["state_dict"]["w"].tolist() == [1, 3]
    assert loaded["state_dict"]["tagged"].tolist() == [1, 1]
    assert loaded["state_dict"]["u16"].dtype == torch.uint16
    assert {key: loaded[key] for key in plain} == {**plain, "size": (2, 3)}
    assert (loaded["cast"], loaded["large"]) == (torch.float16, 2**80)
    inert = ("val_result", "array", "options", "cfg", "partial", "model", "device")
    assert all(isinstance(loaded[key], Inert) for key in inert)
    assert loaded["options"].state == {"seed": 1}


def test_tensors_can_be_written_to_and_share_memory_as_saved(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save({"whole": whole, "row": whole[1]}, tmp_path / "file")
    loaded = load_checkpoint(tmp_path / "file")
    loaded["whole"] += 1
    assert loaded["row"].tolist() == [4, 5, 6]


def test_archives_packed_anew_load(tmp_path):
    members = members_of({"w": torch.randn(1000)})
    path = write_archive(tmp_path / "file", members.items(), compression=zipfile.ZIP_DEFLATED)
    assert load_checkpoint(path)["w"].shape == (1000,)


# ---------------------------------------------------------------------- TorchScript archives


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3).half(), nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.ones(2))
        self.layers, self.nothing = 3, None

    def forward(self, x: torch.Tensor):
        return self.norm(self.linear(x.half()).float()) * self.scale.sum()


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_torchscript_archives_give_their_state_dict(tmp_path, how):
    model = nn.Sequential(Block(), nn.Sequential(Block())).eval()
    compiled = (
        torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.ones(1, 3))
    )
    compiled.save(str(tmp_path / "file"))
    expected = torch.jit.load(str(tmp_path / "file")).state_dict()
    loaded = load_checkpoint(tmp_path / "file")
    assert sorted(loaded) == sorted(expected)
    assert "1.0.norm.running_mean" in loaded
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)


class Restoring(nn.Module):
    """Runs code as soon as ``torch.jit.load`` reads it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        print("restored by code")

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")
def test_code_of_a_torchscript_archive_is_not_run(tmp_path, capfd):
    path = tmp_path / "file"
    torch.jit.script(nn.Sequential(Restoring())).save(str(path))
    refused(path, f"{REFUSED}.*TorchScript archive restores itself by code")
    assert "restored" not in capfd.readouterr().out
    torch.jit.load(str(path))
    assert "restored by code" in capfd.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_module_in_itself_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "whole"))
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("/data.pkl"))
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    refused(write_archive(tmp_path / "f", {**members, name: itself}.items()), "10,000 modules")


# ---------------------------------------------------------------------- crafted files


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def attacks(target):
    command = f"open({str(target)!r}, 'w').close()"
    return [
        Evil(exec, (command,)),
        Evil(eval, (f"open({str(target)!r}, 'w')",)),
        Evil(os.system, (f"touch {target}",)),
        Evil(open, (str(target), "w")),
        Evil(getattr, ("abc", "upper")),
        Evil(torch.save, ({}, str(target))),
        Evil(torch.load, (str(target),)),
        Evil(torch.hub.load, ("somebody/repository", "model")),
        Evil(torch.jit.load, (str(target),)),
        Evil(np.load, (str(target),)),
        Evil(np.save, (str(target), 1)),
        Evil(functools.partial(os.system, f"touch {target}"), ()),
    ]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("index", range(12))
def test_malicious_files_do_nothing(tmp_path, protocol, index):
    target = tmp_path / "created"
    content = {"state_dict": {"w": torch.ones(2)}, "epoch": 1}
    content["scheduler"] = attacks(target)[index]
    path = tmp_path / "file"
    torch.save(content, path, pickle_protocol=protocol)
    loaded = load_checkpoint(path)
    assert not target.exists()
    assert isinstance(loaded["scheduler"], Inert)
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(2))
    if index == 0:  # the attack itself works: an ordinary unpickle would have run it
        torch.load(path, weights_only=False)
        assert target.exists()


def test_no_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_checkpoint(forge(tmp_path / "f", b"\x80\x02ctrap_module\nThing\n)\x81}b."))
    assert isinstance(loaded, Inert)
    assert "trap_module" not in sys.modules


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
STATE = b"}X\x01\x00\x00\x00aK\x01s"  # {"a": 1}


def numbers(*values):
    return b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values)


def rebuilt(offset, size, stride, storage=STORAGE):
    """A pickle of one tensor that is put together from numbers at will."""
    parts = numbers(offset), b"(", numbers(*size), b"t(", numbers(*stride), b"t"
    return b"\x80\x02" + REBUILD + b"(" + storage + b"".join(parts) + b"\x89NtR."


def test_a_forged_tensor_within_its_storage_loads(tmp_path):
    assert load_checkpoint(forge(tmp_path / "f", rebuilt(1, [3], [1]))).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02" + REBUILD + STATE + b"b.", "may not change functions"),
        (b"\x80\x02" + REBUILD + b"N" + STATE + b"\x86b.", "may not change functions"),
        (b"\x80\x02cany\nClass\n" + STATE + b"b.", "missing 1 required"),
        (b"\x80\x02ccollections\nOrderedDict\nN" + STATE + b"\x86b.", "immutable"),
        (b"\x80\x02X\x03\x00\x00\x00abcQ.", "persistent"),
        (b"\x80\x02(X\x06\x00\x00\x00modulecany\nClass\nNtQ.", "persistent"),
        (STORAGE.replace(b"FloatStorage", b"Generator").join([b"\x80\x02", b"."]), "persistent"),
        (STORAGE.replace(b"\x000X", b"\x007X").join([b"\x80\x02", b"."]), "data/7 is missing"),
        (rebuilt(0, [5], [1]), "out of bounds|elements has 4 stored"),
        (rebuilt(4, [4], [1]), "out of bounds"),
        (rebuilt(-1, [2], [1]), "invalid storage offset"),
        (rebuilt(0, [2], [-1]), "Negative"),
        (rebuilt(0, [2], [1 << 40]), "out of bounds"),
        (rebuilt(0, [3], [1 << 62]), "out of bounds|overflow"),
        (rebuilt(0, [1 << 40], [0]), "has 4 stored"),
        (rebuilt(0, [1 << 40, 1 << 40], [0, 0]), "has 4 stored"),
        (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "numbers an object 4,294,967,295"),
        (b"\x80\x02" + b"\x8e" + struct.pack("<Q", 2**60) + b".", "expected|truncated|bytes"),
        (b"\x80\x02" + b"(" * 10, "end|exhausted"),
        (b"", "exhausted|pickle"),
    ],
)
def test_forged_pickles_are_refused(tmp_path, pickled, reason):
    refused(forge(tmp_path / "f", pickled), f"{REFUSED}.*({reason})")


def test_lists_in_themselves_and_deep_ones_do_no_harm(tmp_path):
    itself = load_checkpoint(forge(tmp_path / "f", b"\x80\x02]q\x00h\x00a."))
    assert itself[0] is itself
    deep = load_checkpoint(
        forge(tmp_path / "g", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
    )
    assert len(deep) == 1


@pytest.mark.parametrize("name", ["other/data.pkl", "archive/data.pkl"])
def test_archives_that_readers_could_take_for_another_are_refused(tmp_path, name):
    members = [*members_of({"w": torch.ones(2)}).items(), (name, pickle.dumps({}))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
        path = write_archive(tmp_path / "f", members)
    refused(path, "has 2 data.pkl|twice")


def test_names_that_lead_out_write_nothing(tmp_path):
    members = [*members_of({"w": torch.ones(2)}).items(), ("../out", b"x")]
    load_checkpoint(write_archive(tmp_path / "f", members))
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert not (tmp_path.parent / "out").exists()


def test_encrypted_members_are_refused(tmp_path):
    path = tmp_path / "f"
    torch.save({"w": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    path.write_bytes(content)
    refused(path, "encrypted")


# ---------------------------------------------------------------------- damage and size


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_cut_off_files_are_value_errors(tmp_path, keep):
    path = tmp_path / "file"
    torch.save(live_checkpoint(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path, REFUSED)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "data/1", "version", "byteorder"])
def test_one_flipped_bit_is_noticed(tmp_path, member):
    path = tmp_path / "file"
    torch.save({"a": torch.rand(50), "b": torch.rand(50)}, path)
    flip_bit_in(path, member)
    if member.startswith("data/"):
        torch.load(path, weights_only=True)  # goes unnoticed there
    refused(path, f"{REFUSED}.*Bad CRC-32 for file 'file/{member}'")


def test_files_that_unpack_to_far_more_are_refused_unread(tmp_path, monkeypatch):
    members = members_of({"w": torch.zeros(2_000_000)})
    path = write_archive(tmp_path / "f", members.items(), compression=zipfile.ZIP_DEFLATED)
    unpacked, packed = sum(map(len, members.values())), path.stat().st_size
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # not one member is looked into
    refused(path, f"{packed:,} bytes and would unpack to {unpacked:,}, more than 10 times")


def test_no_more_is_unpacked_than_announced(tmp_path):
    """The sizes in the list of members say little, the compressed data are much."""
    members = members_of({"w": torch.zeros(2_000_000)})
    path = write_archive(tmp_path / "f", members.items(), compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 8_000_000)) == 2
    path.write_bytes(content.replace(struct.pack("<I", 8_000_000), struct.pack("<I", 1000)))
    refused(path, "Bad CRC-32")


def test_the_format_before_1_6_is_refused_with_the_way_to_convert(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refused(path, r"PyTorch before 1\.6.*convert it: python -c .*old\.pth")


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04", b"\x80\x02N.", b"\x93NUMPY"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    refused(tmp_path / "f", REFUSED)


# ---------------------------------------------------------------------- weights that are no numbers


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bare, dtype, bad):
    state = {"fine": torch.ones(3), "odd": torch.ones(2, 2, dtype=dtype)}
    state["odd"][1, 0] = bad
    torch.save(state if bare else {"state_dict": state}, tmp_path / "f")
    refused(tmp_path / "f", "'odd' in it has infinite or NaN values")


def test_large_numbers_and_attention_masks_are_fine(tmp_path):
    mask = torch.full((3, 3), -float("inf")).triu(1)
    state = {
        "large": torch.full((9,), 3e38),
        "half": torch.full((9,), 6e4).half(),
        "attn_mask": mask,
    }
    torch.save(state, tmp_path / "f")
    assert torch.equal(load_checkpoint(tmp_path / "f")["attn_mask"], mask)
