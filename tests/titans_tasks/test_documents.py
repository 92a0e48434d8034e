"""Documents are split by file, in the same way everywhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_tasks.documents import Document, character_boundary, read_corpus, split, stdlib_documents
from titans_tasks.errors import DataError

names = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=60, unique=True)
sizes = st.lists(st.integers(20, 3000), min_size=60, max_size=60)


def made(names: list[str], sizes: list[int]) -> list[Document]:
    return [Document(name, bytes(i % 251 for i in range(size))) for name, size in zip(names, sizes, strict=False)]


@given(names, sizes)
def test_a_split_loses_no_byte_and_shares_none(names: list[str], sizes: list[int]) -> None:
    documents = made(names, sizes)
    corpus = split(documents)
    train, held_out = ({d.name: d.data for d in part} for part in (corpus.train, corpus.held_out))
    assert not train.keys() & held_out.keys()
    for document in documents:
        end = next((data for name, data in held_out.items() if name.startswith(f"{document.name}[")), b"")
        tail = end if corpus.tails else held_out.get(document.name, b"")
        assert train.get(document.name, b"") + tail == document.data


@given(names, sizes)
def test_a_small_part_is_held_out_whatever_the_sizes(names: list[str], sizes: list[int]) -> None:
    corpus = split(made(names, sizes))
    held_out, train = (sum(len(d.data) for d in part) for part in (corpus.held_out, corpus.train))
    assert 0.02 <= held_out / (held_out + train) <= 0.25


@pytest.mark.parametrize("large", ["book.txt", "notes.txt", "a", "b", "c"])
def test_the_large_one_of_two_files_is_trained_on_whatever_its_name(large: str) -> None:
    corpus = split([Document(large, b"long " * 10_000), Document("small", b"short " * 40)])
    trained = {d.name: len(d.data) for d in corpus.train}
    assert trained == {large: 45_000, "small": 216}
    assert corpus.described() == (
        "trains on 2 files, 45,216 bytes; holds out the last tenth of 2 files, 5,024 bytes (10.0%)"
    )


@given(names, st.randoms())
def test_a_split_does_not_depend_on_the_order(names: list[str], random: object) -> None:
    documents = [Document(name, 3 * name.encode("utf-8", "replace")) for name in names]
    shuffled = list(documents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    if sum(len(document.data) for document in documents) > 3:
        assert split(shuffled) == split(documents)


def test_files_of_a_few_bytes_are_held_out_whole() -> None:
    corpus = split([Document(name, data) for name, data in (("a", b"abc"), ("b", b"ab"), ("c", b"abc"))])
    assert [d.name for d in corpus.held_out] == ["b"]


def test_a_known_name_stays_where_it_was() -> None:
    corpus = split([Document(f"file{i}.py", b"text") for i in range(40)])
    assert [d.name for d in corpus.held_out] == ["file0.py", "file11.py", "file24.py", "file37.py"]


def test_the_standard_library_gives_megabytes_of_source_and_no_tests() -> None:
    documents = stdlib_documents()
    assert sum(len(d.data) for d in documents) > 4_000_000
    found = {d.name for d in documents}
    assert {"argparse.py", "json/decoder.py"} <= found
    assert not any(part in name.split("/") for name in found for part in ("site-packages", "test", "tests"))


def test_a_tenth_of_the_standard_library_is_held_out() -> None:
    corpus = read_corpus(["stdlib"])
    held_out, train = (sum(len(d.data) for d in part) for part in (corpus.held_out, corpus.train))
    assert held_out > 4 * 65_536
    assert 0.03 < held_out / (held_out + train) < 0.25


def test_files_are_named_relative_to_their_common_directory(tmp_path: Path) -> None:
    for name in ("a/one.txt", "a/two.txt", "b/three.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"some text")
    corpus = read_corpus([str(tmp_path / name) for name in ("a/one.txt", "b/three.txt", "a/two.txt")])
    assert {d.name for d in corpus.train} == {"a/one.txt", "a/two.txt", "b/three.txt"}


def test_a_lone_file_gives_its_last_tenth(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_bytes(bytes(range(200)))
    corpus = read_corpus([str(tmp_path / "only.txt")])
    assert corpus.train[0].data + corpus.held_out[0].data == bytes(range(200))
    assert len(corpus.held_out[0].data) == 20
    assert (corpus.train[0].whole, corpus.held_out[0].whole) == (False, True)


def test_unusable_data_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="no text"):
        read_corpus([str(tmp_path / "empty.txt")])
    with pytest.raises(DataError, match=r"there is no file .*missing\.txt"):
        read_corpus([str(tmp_path / "missing.txt")])
    with pytest.raises(DataError, match=r"is a directory; name the files in it"):
        read_corpus([str(tmp_path)])


@given(st.text(min_size=8), st.integers(0, 3))
def test_a_lone_file_is_cut_between_characters(text: str, more: int) -> None:
    data = text.encode("utf-8", "replace") + b"." * (20 + more)
    corpus = split([Document("only", data)])
    assert corpus.train[0].data.decode() + corpus.held_out[0].data.decode() == data.decode()


def test_bytes_that_are_no_text_are_cut_where_asked() -> None:
    assert character_boundary(b"\x80" * 12, 6) == 6
    assert [character_boundary("a記b".encode(), at) for at in range(6)] == [0, 1, 1, 1, 4, 5]
