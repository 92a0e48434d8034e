"""Planted repeats can be told by memory alone, and FASTA is read as it is written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_tasks.dna import (
    BaseTokenizer,
    GenomeTask,
    PlantedConfig,
    PlantedTask,
    described,
    planted_sequence,
    promoters,
    read_fasta,
)
from titans_tasks.errors import DataError

CONFIG = PlantedConfig(families=3, gap=32, held_out_gap=64, held_out_streams=2)


@settings(deadline=None, max_examples=30)
@given(gap=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_who_remembers_what_followed_each_promoter_knows_every_repeated_base(gap: int, seed: int) -> None:
    sequence = planted_sequence(CONFIG, gap, seed)
    boxes = {box.tobytes() for box in promoters(CONFIG)}
    starts = np.flatnonzero(np.diff(sequence.repeated.astype(int), prepend=0) == 1)
    assert len(starts) >= 1
    assert sequence.repeated.sum() == CONFIG.families * CONFIG.body
    first = sequence.bases[: sequence.again].astype(np.int64)
    for start in np.flatnonzero(sequence.repeated).reshape(CONFIG.families, CONFIG.body)[:, 0]:
        box = sequence.bases[start - CONFIG.promoter : start]
        body = sequence.bases[start : start + CONFIG.body]
        assert box.tobytes() in boxes
        copy = np.concatenate([box, body])
        windows = np.lib.stride_tricks.sliding_window_view(first, len(copy))
        assert (windows == copy).all(1).any()
    assert sequence.repeated[: sequence.again].sum() == 0


def test_batches_count_the_repeats_alone_and_predict_the_next_base() -> None:
    task = PlantedTask(CONFIG, chunk=16, seed=1)
    batch = task.batch(4, range(3))
    assert batch.inputs.shape[1] % 16 == 0
    assert (batch.mask.sum(1) == CONFIG.families * CONFIG.body).all()
    rows, columns = np.nonzero(batch.mask)
    assert np.array_equal(batch.targets[rows, columns], batch.inputs[rows, columns + 1])
    assert np.array_equal(batch.inputs[1:], task.batch(4, range(1, 3)).inputs[:, : batch.inputs.shape[1]])


def test_the_held_out_slices_join_to_whole_sequences() -> None:
    joined = np.concatenate([batch.inputs for batch in PlantedTask(CONFIG, chunk=16, seed=0).held_out()], axis=1)
    for seed, row in enumerate(joined):
        bases = planted_sequence(CONFIG, CONFIG.held_out_gap, seed).bases
        assert np.array_equal(row[: len(bases)], bases)


def test_too_many_promoters_are_refused() -> None:
    with pytest.raises(DataError, match="longer or fewer"):
        PlantedConfig(families=100, promoter=4)


def test_fasta_records_are_joined_lines(tmp_path: Path) -> None:
    path = tmp_path / "two.fa"
    path.write_text(">one chromosome\nACGT\nacgn\n\n>two\nTTTT\n")
    records = read_fasta([str(path)])
    assert [(record.name, record.data) for record in records] == [
        ("two.fa/0-one", b"ACGTacgn"),
        ("two.fa/1-two", b"TTTT"),
    ]
    ids = BaseTokenizer().encode(records[0].data)
    assert ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 4]
    assert BaseTokenizer().decode(ids) == b"ACGTACGN"


def test_bits_per_base_of_a_genome_task(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_text(">a\n" + "ACGT" * 100 + "\n")
    task = GenomeTask(read_fasta([str(path)]), window=32, seed=0)
    assert task.settings["task"] == "dna"
    batch = task.batch(0, range(2))
    assert batch.inputs.max() < 5
    from titans_tasks.task import Totals

    assert task.metrics(Totals(loss=10 * np.log(4), correct=0, count=10))["bits_per_base"] == pytest.approx(2.0)


PLAIN = ">one chromosome\nACGT\nACGTN\n>two\nTTTT\n"
WRITTEN = {
    "RNA": PLAIN.replace("T", "U").replace("UUUU", "UUUu").encode(),
    "a byte order mark": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.encode("utf-16"),
    "gzip": gzip.compress(PLAIN.encode()),
    "comments": (";by hand\n" + PLAIN.replace("ACGT\n", "ACGT\n; and here\n", 1)).encode(),
    "line ends of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "line ends of old": PLAIN.replace("\n", "\r").encode(),
    "lower case": PLAIN.replace("ACGT", "acgt").encode(),
    "letters for several bases": PLAIN.replace("ACGTN", "ACGTR").encode(),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n\n")).encode(),
    "spaces": PLAIN.replace("ACGT", "AC GT ").encode(),
    "an umlaut in a header": PLAIN.replace("chromosome", "Käfer").encode("latin-1"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_fasta_is_read_however_it_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.fa").write_bytes(WRITTEN[name])
    records = read_fasta([str(tmp_path / "a.fa")])
    assert [record.name for record in records] == ["a.fa/0-one", "a.fa/1-two"]
    assert [BaseTokenizer().encode(record.data).tolist() for record in records] == [
        [0, 1, 2, 3, 0, 1, 2, 3, 4],
        [3] * 4,
    ]


def test_letters_that_are_read_as_others_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGUUNRYACGU\n")
    said = described(read_fasta([str(tmp_path / "a.fa")]))
    assert said == "1 records, 12 bases, 3 U read as T, 2 other letters read as N, 1 N"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (">p\nMKVSAGHDRTKWYVMSAGHDRTK\n", "hardly any A, C, G, T or U"),
        (">p\nACGTß\n", "no nucleotide"),
        (">p\n1 ACGT 5 ACGT\n", "'1' in 'p' is no nucleotide"),
        ("@read\nACGT\n+\nIIII\n", "looks like FASTQ; convert it"),
        ("LOCUS  X\n", "looks like GenBank"),
        ("", "not FASTA"),
        ("ACGT\n", "not FASTA"),
        (">p\nMKLVE\n", "no nucleotide"),
        (">p\n\n", "no sequence"),
    ],
)
def test_what_is_not_dna_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.fa"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_fasta([str(path)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(DataError, match=r"none\.fa"):
        read_fasta(["none.fa"])


def test_files_that_were_joined_each_with_a_mark_are_read(tmp_path: Path) -> None:
    one = ">x\nACGT\n".encode("utf-8-sig")
    (tmp_path / "joined.fa").write_bytes(one * 3)
    assert [record.data for record in read_fasta([str(tmp_path / "joined.fa")])] == [b"ACGT"] * 3
