"""TRAIN.COMPILE: functions are compiled once, whole, or run as they are."""

import shutil

import pytest
import torch
from torch import nn

from dassl.engine.compiled import Compiler, compile_model
from dassl.engine.record import Notes


def squares(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return module(x).square()


def asks_for_a_value(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return module(x) * (2 if print("a graph ends here") else 3)


class Part(nn.Linear):
    function = staticmethod(squares)

    def compile_parts(self, compiler) -> None:
        self.function = compiler(type(self).function)


def test_modules_share_what_is_compiled_and_keep_their_names():
    parts = nn.Sequential(Part(3, 3), nn.ReLU(), Part(3, 3))
    names = list(parts.state_dict())
    notes = Notes()
    compile_model(parts, notes)
    assert parts[0].function is parts[2].function is not squares
    assert list(parts.state_dict()) == names
    assert not notes


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_inductor_computes_the_same():
    notes = Notes()
    layer, x = nn.Linear(3, 3), torch.randn(5, 3, requires_grad=True)
    compiled = Compiler(notes)(squares)
    wanted = [x, *layer.parameters()]
    found = torch.autograd.grad(compiled(layer, x).sum(), wanted)
    expected = torch.autograd.grad(squares(layer, x).sum(), wanted)
    torch.testing.assert_close(found, expected)
    assert not notes


def broken(graph, inputs):
    raise OSError("no compiler\nand a long story")


@pytest.mark.parametrize(
    ("function", "backend", "said"),
    [(squares, broken, "no compiler"), (asks_for_a_value, "aot_eager", "")],
    ids=["no-compiler", "unsupported"],
)
def test_what_cannot_be_compiled_runs_as_it_is_and_the_log_says_so_once(
    function, backend, said, capsys
):
    torch.compiler.reset()
    notes, layer, x = Notes(), nn.Linear(3, 3), torch.randn(5, 3)
    compiler = Compiler(notes, backend)
    for each in (function, squares, function):  # the first failure is the last attempt
        assert torch.equal(compiler(each)(layer, x), each(layer, x))
    (note,) = notes
    assert note.startswith("TRAIN.COMPILE: not compiled")
    assert said in note
    assert "\n" not in note
    assert capsys.readouterr().out.count(note) == 1


def test_mistakes_in_the_arguments_are_raised_as_they_are():
    compiled = Compiler(Notes(), "aot_eager")(squares)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled(nn.Linear(3, 3), torch.randn(5, 4))


def test_a_model_without_such_parts_is_noted():
    notes = Notes()
    compile_model(nn.Linear(3, 3), notes)
    assert notes == ["TRAIN.COMPILE has no effect: nothing in this model can be compiled"]
