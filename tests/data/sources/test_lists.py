"""Lists of frames: separators, headings, encodings, root folders, parts of a split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.data.sources import lists
from jaxdepth.runtime.errors import UserError

PAIRS = [("rgb/1.jpg", "depth/1.png"), ("rgb/2.jpg", "depth/2.png")]


def parsed(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lists.read(path)


def columns(listing):
    return [row.columns for row in listing.rows]


@pytest.mark.parametrize(
    "text",
    [
        "rgb/1.jpg depth/1.png\nrgb/2.jpg depth/2.png",
        "rgb/1.jpg,depth/1.png\r\nrgb/2.jpg, depth/2.png\r\n",
        "rgb/1.jpg\tdepth/1.png\rrgb/2.jpg\tdepth/2.png\r",
        "rgb/1.jpg;depth/1.png\n\n  \nrgb/2.jpg ; depth/2.png",
        "# all frames\nrgb/1.jpg   depth/1.png  \n  rgb/2.jpg \t depth/2.png",
        "image,depth\nrgb/1.jpg,depth/1.png\nrgb/2.jpg,depth/2.png",
        '"rgb/1.jpg" "depth/1.png"\n"rgb/2.jpg" depth/2.png',
        ",image,depth\n0,rgb/1.jpg,depth/1.png\n1,rgb/2.jpg,depth/2.png",
        "1 rgb/1.jpg depth/1.png\n2 rgb/2.jpg depth/2.png",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_forms_of_one_list(tmp_path, text, encoding):
    listing = parsed(tmp_path, text.encode(encoding))
    assert columns(lists.without_index(listing)) == PAIRS


def test_line_numbers_count_headings_comments_and_empty_lines(tmp_path):
    listing = parsed(tmp_path, "# made by hand\nimage,depth\n\na.jpg,b.png\n")
    assert listing.heading == ("image", "depth")
    assert listing.where(listing.rows[0]) == f"{tmp_path / 'a.txt'}, line 4"


@pytest.mark.parametrize(
    "line, expected",
    [
        ('"my photo.jpg" d.png', ("my photo.jpg", "d.png")),
        ('"a,b.jpg",d.png', ("a,b.jpg", "d.png")),
        ("my photo.jpg,d.png", ("my photo.jpg", "d.png")),
        ("it's.jpg d.png", ("it's.jpg", "d.png")),
        ("/k/rgb_1.jpg None 721.5", ("/k/rgb_1.jpg", "None", "721.5")),
    ],
)
def test_names(tmp_path, line, expected):
    assert columns(parsed(tmp_path, line)) == [expected]


def test_a_missing_column_stays_visible(tmp_path):
    listing = parsed(tmp_path, "a.jpg b.png 518.9\nc.jpg d.png\n")
    assert [len(row.columns) for row in listing.rows] == [3, 2]


def test_numbers_in_the_first_column_that_are_no_index_stay(tmp_path):
    listing = parsed(tmp_path, "0 a.jpg b.png\n5 c.jpg d.png\n")
    assert columns(lists.without_index(listing))[1] == ("5", "c.jpg", "d.png")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "is not text"),
        ("caf\xe9.jpg d.png".encode("latin-1"), "is not text"),
        (b'"a.jpg b.png\n', "line 1: "),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        parsed(tmp_path, content)
    if "text" in message:
        assert lists.peek(tmp_path / "a.txt") is None


def test_a_file_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "LARGEST", 100)
    with pytest.raises(UserError, match="too large for a list"):
        parsed(tmp_path, "a.jpg b.png\n" * 100)


def test_peek_drops_the_line_that_is_cut_off(tmp_path):
    parsed(tmp_path, "a.jpg b.png 518.9\n" * 5000)
    peeked = lists.peek(tmp_path / "a.txt")
    assert peeked is not None
    assert set(columns(peeked)) == {("a.jpg", "b.png", "518.9")}


name = st.text("abc XYZ09_-.é,;'", min_size=1).map(lambda s: f"d/{s}.png")


@given(
    st.lists(st.tuples(name, name), min_size=1, max_size=5), st.sampled_from("\t;, ")
)
def test_quoted_names_are_read_back(tmp_path_factory, rows, separator):
    rows = [tuple(" ".join(n.split()) for n in row) for row in rows]
    text = "\n".join(separator.join(f'"{n}"' for n in row) for row in rows)
    assert columns(parsed(tmp_path_factory.mktemp("list"), text)) == rows


@pytest.mark.parametrize(
    "path, part",
    [
        ("latest_train.txt", "train"), ("train.txt", "train"), ("test.txt", "test"),
        ("latest.txt", None), ("contest/a.txt", None), ("validate.csv", None),
        ("nyu2_test.csv", "test"), ("filename_list_train.txt", "train"),
        ("train_test_inputs/nyudepthv2_train_files_with_gt_dense.txt", "train"),
        ("train_test_split.txt", None), ("train/rgb/0001.png", "train"),
        ("Validation/a/b.png", "val"), ("train/rgb/valid.png", "val"),
        (r"data\test\1.png", "test"), ("testing.lst", "test"), ("eval_test.txt", None),
    ],
)  # fmt: skip
def test_whole_words_of_a_path_name_the_part(path, part):
    assert lists.part_of(path) == part


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    "name",
    [
        "rgb/1.jpg", "./rgb/1.jpg", "/rgb/1.jpg", r"rgb\1.jpg", "//rgb//1.jpg",
        "/home/somebody/data/rgb/1.jpg", r"C:\data\rgb\1.jpg",
    ],
)  # fmt: skip
def test_names_of_one_file_in_the_folder(tmp_path, name):
    path = touch(tmp_path / "rgb" / "1.jpg")
    assert lists.Root(tmp_path).find(name) == path


def test_a_relative_name_loses_no_folders(tmp_path):
    touch(tmp_path / "1.jpg")
    assert lists.Root(tmp_path).find("depth/1.jpg") is None


def test_all_absolute_names_lose_as_many_folders(tmp_path):
    touch(tmp_path / "rgb" / "1.jpg")
    touch(tmp_path / "2.jpg")
    root = lists.Root(tmp_path)
    assert root.find("/x/y/rgb/1.jpg") is not None
    assert root.find("/x/y/rgb/2.jpg") is None


@pytest.mark.parametrize("kind", ["parents", "absolute", "file link", "folder link"])
def test_files_outside_are_refused_unless_allowed(tmp_path, kind):
    secret = touch(tmp_path / "other" / "secret.png")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    name = {
        "parents": "../other/secret.png",
        "absolute": str(secret),
        "file link": "link.png",
        "folder link": "linked/secret.png",
    }[kind]
    with pytest.raises(UserError, match=r"secret\.png is outside|link\.png is outside"):
        lists.Root(folder).find(name)
    allowed = lists.Root(folder, allow_outside=True).find(name)
    assert allowed is not None and allowed.resolve() == secret


def test_dots_and_links_within_the_folder_are_fine(tmp_path):
    path = touch(tmp_path / "rgb" / "1.jpg")
    (tmp_path / "link.jpg").symlink_to(path)
    root = lists.Root(tmp_path)
    assert root.find("depth/../rgb/1.jpg") is None  # there is no folder depth
    (tmp_path / "depth").mkdir()
    assert root.find("depth/../rgb/1.jpg") is not None
    assert root.find("link.jpg") == tmp_path / "link.jpg"


@pytest.mark.parametrize("name", ["", "/", "absent.jpg", "a" * 5000, "a\0b", "rgb"])
def test_names_of_no_file(tmp_path, name):
    touch(tmp_path / "rgb" / "1.jpg")
    assert lists.Root(tmp_path).find(name) is None


def test_the_root_is_the_nearest_folder_with_the_files(tmp_path):
    start = tmp_path / "a" / "b"
    start.mkdir(parents=True)
    both = ("", "sync")

    def root(*names, below=("",)):
        found = lists.root_of(start, names, below=below)
        return found and found.folder

    touch(tmp_path / "k" / "1.jpg")
    assert root("/k/1.jpg") == tmp_path
    touch(tmp_path / "a" / "sync" / "k" / "1.jpg")
    assert root("k/1.jpg", below=both) == tmp_path / "a" / "sync"
    touch(start / "k" / "1.jpg")
    assert root("k/1.jpg", below=both) == start
    assert root("k/none.jpg", "\0", "x" * 5000) is None
    assert root() is None


def test_peeking_never_raises(tmp_path):
    assert lists.peek(tmp_path) is None and lists.peek(tmp_path / "none") is None
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" + b"\xc3\xa9" * 9999)  # splits the last letter
    assert lists.peek(path) is not None
