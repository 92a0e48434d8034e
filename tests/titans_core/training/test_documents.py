"""Documents are split by file, in the same way everywhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_core.errors import DataError
from titans_core.training.documents import Document, character_boundary, read_corpus, split, stdlib_documents

names = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=60, unique=True)


@given(names)
def test_a_split_loses_no_document_and_shares_none(names: list[str]) -> None:
    corpus = split([Document(name, b"text") for name in names])
    train, held_out = {d.name for d in corpus.train}, {d.name for d in corpus.held_out}
    assert train
    assert held_out
    assert not train & held_out
    assert train | held_out == set(names)


@given(names, st.randoms())
def test_a_split_depends_on_the_names_alone(names: list[str], random: object) -> None:
    documents = [Document(name, name.encode("utf-8", "replace")) for name in names]
    shuffled = list(documents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split(shuffled) == split(documents)


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
    assert {d.name for d in corpus.train + corpus.held_out} == {"a/one.txt", "a/two.txt", "b/three.txt"}


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
