"""Network diagrams against published shapes and parameter counts."""

import itertools

import pytest

from jaxdepth import plots
from jaxdepth.commands.paper import diagram
from jaxdepth.runtime.errors import UserError


def test_cnn_fc_has_the_shapes_and_counts_of_the_paper():
    found = diagram.trace("cnn_fc", (228, 304))
    outs = [part.shape_out for part in found.parts]
    assert outs == [
        (55, 74, 96), (27, 37, 256), (13, 18, 384), (13, 18, 384), (13, 18, 256),
        (4096,), (4070,),
    ]  # fmt: skip
    assert found.parts[5].shape_in == (13824,) and found.shape_out == (55, 74)
    assert found.parts[5].parameters == 13824 * 4096 + 4096
    # 3,745,824 convolution weights, and scale and offset of each normalisation.
    convolutions = sum(part.parameters for part in found.parts[:5])
    assert convolutions == 3_745_824 + 2 * (96 + 256 + 384 + 384 + 256)


def test_upproj_has_the_shapes_and_counts_of_the_published_network():
    found = diagram.trace("upproj", (228, 304), layout="fcrn")
    assert found.parameters == 63_572_737
    assert sum(part.parameters for part in found.parts) == found.parameters
    by_name = {part.name: part for part in found.parts}
    assert [by_name[f"stage{k}"].repeats for k in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert by_name["stage4"].shape_out == (8, 10, 2048)
    assert by_name["up4"].shape_out == (128, 160, 64)
    # A published block: two 5x5 and one 3x3 kernels, 9 biases, 3 normalisations.
    blocks = [by_name[f"up{k}"].parameters for k in (1, 2, 3, 4)]
    widths = (1024, 512, 256, 128, 64)
    assert blocks == [
        50 * a * b + 9 * b * b + 15 * b for a, b in itertools.pairwise(widths)
    ]
    assert by_name["up1"].kind == "UpProjection" and by_name["head"].parameters == 577


def words(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_drawing_shows_shapes_counts_and_operations(tmp_path):
    found = [diagram.trace(arch, (228, 304)) for arch in ("cnn_fc", "cnn_trans")]
    figure = diagram.draw(found)
    shown = words(figure)
    assert {"55x74x96", "56.6 M par.", "4070", "58x76", "57x76x256"} <= set(shown)
    # Operations between the boxes follow from the shapes.
    assert {"pool\n27x37", "pool,\nflat", "reshape", "pool\n29x38", "cut"} <= set(shown)
    assert "cnn_fc: 228x304x3 to 55x74, 77,050,566 parameters" in [
        axis.get_title("left") for axis in figure.axes
    ]
    plots.save(figure, tmp_path / "f.svg")
    assert ">57x76x256<" in (tmp_path / "f.svg").read_text()


@pytest.mark.parametrize("arch", ["cnn_fc", "cnn", "cnn_trans", "upproj"])
def test_networks_of_any_size_can_be_drawn(arch):
    found = diagram.trace(arch, (61, 83))
    assert found.shape_in == (61, 83, 3)
    diagram.draw([found])
    for before, after in zip(found.parts[:-1], found.parts[1:], strict=True):
        if len(after.shape_in) == 3:  # no operation between boxes enlarges a map
            assert before.shape_out[-1] == after.shape_in[-1]
            assert before.shape_out[0] >= after.shape_in[0]


def test_too_small_a_size_is_refused():
    with pytest.raises(UserError, match="too small for cnn_fc"):
        diagram.trace("cnn_fc", (20, 30))
