"""What people bring as text: their files, tokenizers and mixes are read as what they are, counted,
or refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import types
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steering.errors import SteeringError
from steering.reading import report_once, user_path
from steering.task import ModelSpec
from steering_tasks.language import LanguageOptions, LanguageTask
from steering_tasks.language.corpus import read_domains, stdlib
from steering_tasks.language.data import Blocks, corrupted, mixed, pack
from steering_tasks.language.models import build_causal
from steering_tasks.language.task import LanguageData
from steering_tasks.language.tokens import Bytes, Tokens, open_tokens

TINY = '{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder that is the home folder too; what was reported is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    report_once.cache_clear()
    return tmp_path


@pytest.fixture
def said(caplog):
    """What the logger has said so far."""
    caplog.set_level("INFO", "steering")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def read(path: str, column: str = "text", separator: str | None = None) -> list[str]:
    return read_domains({"d": path}, column, separator, "paths")["d"]


def refused(path: str, words: str, column: str = "text") -> None:
    """Refused in one line that names the key and holds the words."""
    with pytest.raises(SteeringError, match=words) as caught:
        read(path, column)
    assert str(caught.value).startswith("paths.d: cannot read ")
    assert "\n" not in str(caught.value)


def lines(*texts: object) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


# ---- paths
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["data[1].jsonl", "a b/x y.jsonl", "run:2/t.jsonl", "[a]/q*.jsonl", "~odd.jsonl"]
)
def test_a_file_that_exists_is_taken_by_its_name(name):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(lines("right"))
    Path("data1.jsonl").write_bytes(lines("what the brackets match as a glob"))
    assert read(name) == ["right"]
    assert read(str(Path(name).absolute())) == ["right"]


def test_brackets_of_a_folder_are_no_glob():
    for place, text in (("data[1]", "right"), ("data1", "wrong")):
        Path(place).mkdir()
        Path(place, "x.jsonl").write_bytes(lines(text))
    assert read("data[1]/*.jsonl") == ["right"]
    assert read("data[0-9]/*.jsonl") == ["wrong"]


def test_two_stars_go_down_any_number_of_folders():
    for place in (".", "one", "one/two"):
        Path(place).mkdir(exist_ok=True)
        Path(place, "x.txt").write_text(place)
    assert sorted(read("**/x.txt")) == [".", "one", "one/two"]


def test_the_home_folder_everywhere(folder):
    datasets.Dataset.from_dict({"text": ["disk"]}).save_to_disk(str(folder / "disk"))
    Path("t.txt").write_text("text")
    assert [read(path) for path in ("~/t.txt", "~/*.txt", "~/disk")] == [
        ["text"],
        ["text"],
        ["disk"],
    ]
    word_level({"<eos>": 0, "a": 1, "b": 2}, "tok")
    tokens = open_tokens("~/tok")
    Path("tiny.json").write_text(TINY)
    model = build_causal(ModelSpec("~/tiny.json"), tokens, 8)
    model.module.model.save_pretrained("saved")
    for spec in (
        ModelSpec("~/saved"),
        ModelSpec("~/saved", pretrained="name"),
        ModelSpec("~/tiny.json", "~/saved"),
    ):
        assert build_causal(spec, tokens, 8).module.model.config.vocab_size == 3
    with pytest.raises(SteeringError, match=f"no such file: {folder}/gone"):
        LanguageTask(LanguageOptions(length=8)).build(ModelSpec("tiny.json", checkpoint="~/gone"))


def test_a_user_that_is_not_known_is_no_traceback():
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    refused("~nobody-of-this-name/x.txt", "no such file")


@pytest.mark.parametrize("name", ["~/gone", "./gone", "/gone/x", "a/b/c", "file"])
@pytest.mark.parametrize("what", ["tokenizer", "name", "pretrained"])
def test_a_folder_that_is_not_there_is_no_hub_name(what, name):
    Path("file").write_text("no folder")
    Path("tiny.json").write_text(TINY)
    make = {
        "tokenizer": lambda: open_tokens(name),
        "name": lambda: build_causal(ModelSpec(name), Bytes(), 8),
        "pretrained": lambda: build_causal(ModelSpec("tiny.json", pretrained=name), Bytes(), 8),
    }
    with pytest.raises(
        SteeringError, match=r"no such folder: |is a file; expected a folder"
    ) as caught:
        make[what]()
    assert "\n" not in str(caught.value)


def test_a_name_that_may_be_both_is_told_as_both(monkeypatch):
    def offline(*_, **__):
        raise OSError("the hub is away\nand more")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", offline)
    with pytest.raises(
        SteeringError,
        match=r"cannot load 'runs/tok': no such folder; as a hub name: the hub is away$",
    ):
        open_tokens("runs/tok")


def test_files_and_folders_of_models(folder):
    Path("tiny.json").write_bytes(b"\xef\xbb\xbf" + TINY.encode())  # as some editors save
    assert build_causal(ModelSpec("tiny.json"), Bytes(), 8).module.model.config.n_embd == 16
    Path("x.json").mkdir()
    with pytest.raises(SteeringError, match="a folder, expected a JSON file"):
        build_causal(ModelSpec("x.json"), Bytes(), 8)
    with pytest.raises(
        SteeringError, match=r"is a folder; expected a file such as .*model\.safetensors"
    ):
        LanguageTask(LanguageOptions(length=8)).build(
            ModelSpec("tiny.json", checkpoint=str(folder))
        )
    Path("bad").mkdir()
    Path("bad/config.json").write_text(TINY)
    Path("bad/model.safetensors").write_text("damaged")
    with pytest.raises(SteeringError, match="cannot build the language model 'bad'"):
        build_causal(ModelSpec("bad", pretrained="name"), Bytes(), 8)
    with pytest.raises(
        SteeringError, match="no token but the end"
    ):  # the library loads one that knows nothing
        open_tokens("bad")
    Path("bytes").write_text("a file of this name")
    assert isinstance(open_tokens("bytes"), Bytes)


def test_what_a_glob_does_not_take_is_counted(said):
    Path("a.txt").write_text("one")
    Path("b.txt").symlink_to("a.txt")
    Path(".c.txt").write_text("hidden")
    Path("d.txt").mkdir()
    assert read("*.txt") == ["one"]
    assert said() == [
        (
            "WARNING",
            "paths.d: 1 documents in *.txt; skipped: 1 hidden file(s), 1 file(s) under a second name, 1 folder(s)",
        )
    ]
    refused("*.c.txt", "no such file; hidden: 1 hidden file")


def test_a_file_of_two_domains_is_said(said):
    for name in "abc":
        Path(f"{name}.txt").write_text(f"{name} " * 40)
    read_domains({"one": "a.txt", "two": "[ab].txt", "three": "c.txt"}, "text", None, "paths")
    assert ("WARNING", "paths.one and paths.two both read a.txt") in said()
    assert len(said()) == 4
    data = LanguageData(
        "files", paths={"d": "a.txt"}, validation={"d": str(Path("a.txt").absolute())}
    )
    assert LanguageTask(LanguageOptions(data=data))._texts
    assert any(
        "task.data.paths.d and task.data.validation.d both read" in line for _, line in said()
    )


def test_folders_are_told_what_to_write():
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk("dd")
    refused("dd", "a data set with the splits train, test; name one, such as .*dd/train$")
    refused("d*", "the splits train, test")
    assert read("dd/train") == ["train"]
    Path("hub/data").mkdir(parents=True)
    Path("hub/README.md").write_text("a card")
    Path("hub/dataset_infos.json").write_text("{}")
    for split in splits:
        pq.write_table(pa.table({"text": [split]}), f"hub/data/{split}-00000-of-00001.parquet")
    refused("hub", r"is a folder; write hub/data/test-\*\.parquet, or")
    assert read("hub/data/test-*.parquet") == ["test"]
    Path("packed").mkdir()
    Path("packed/a.jsonl.gz").write_bytes(gzip.compress(lines("x")))
    refused("packed", r"write packed/\*\.jsonl\.gz")
    assert read("packed/*.jsonl.gz") == ["x"]
    Path("empty").mkdir()
    refused("empty", "is a folder; expected a file, a glob, or a folder of a data set")


# ---- line ends, byte order marks, encodings
# ---------------------------------------------------------------------------

BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".JSONL", ".json"])
def test_json_lines_end_at_a_line_feed_alone(end, suffix):
    texts = [f"one{character}two" for character in BREAKS] + ["three\nfour", "a\tb"]
    raw = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    Path(f"x{suffix}").write_bytes(
        end.join([*raw, "", raw[0]]).encode()
    )  # no end behind the last, a blank line inside
    assert read(f"x{suffix}") == [*texts, texts[0]]


def test_a_number_of_a_line_is_that_of_the_file():
    Path("x.jsonl").write_bytes(lines("a\u2028b", "c") + b'{"text": "d}\n')
    refused("x.jsonl", "x.jsonl: line 3 is no JSON: Unterminated string starting at, column 10$")
    Path("y.jsonl").write_bytes(lines("a\u2028b") + b'{"text": "\xff"}\n')
    refused("y.jsonl", "y.jsonl: line 2 is not UTF-8$")
    Path("z.jsonl").write_bytes(lines("a") + b"[" * 100_000)
    refused("z.jsonl", "line 2 is no JSON")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "x.txt.gz"])
def test_byte_order_marks_are_no_text(name, encoding):
    text = "naïve 😀"
    mark = "\ufeff" if encoding.endswith("e") else ""
    whole = lines(text).decode() if "json" in name else text
    data = (mark + whole).encode(encoding)
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(name) == [text]


def test_byte_order_marks_of_joined_files():
    Path("x.jsonl").write_bytes((b"\xef\xbb\xbf" + lines("a")) * 2)
    assert read("x.jsonl") == ["a", "a"]
    Path("1.txt").write_bytes(b"\xef\xbb\xbfa")
    Path("2.txt").write_bytes(b"\xef\xbb\xbf")
    assert read("[12].txt") == ["a"]


def test_latin_1_is_counted_and_other_code_pages_are_refused(said):
    Path("x.txt").write_bytes("voilà|plain|naïve café|\ufffd".encode("latin-1", "replace"))
    assert read("x.txt", separator="|") == ["voil\ufffd", "plain", "na\ufffdve caf\ufffd", "?"]
    assert said() == [
        (
            "WARNING",
            "paths.d: 4 documents in x.txt; skipped: nothing; changed: 2 with undecodable bytes",
        )
    ]
    Path("y.txt").write_text("\ufffd stands here already", encoding="utf-8")
    assert read("y.txt") == ["\ufffd stands here already"]
    assert said()[-1] == ("INFO", "paths.d: 1 documents in y.txt; skipped: nothing")
    Path("z.txt").write_bytes(("Привет, мир. " * 9).encode("cp1251"))
    refused("z.txt", "is no text in UTF-8: .* cannot be decoded")


@pytest.mark.parametrize(
    "data",
    [b"\xe2\x82", b"a\xf0\x9f\x98b\xc3", b"\xed\xa0\x80x", bytes(range(128, 256)) + b"x" * 900],
)
def test_undecodable_bytes_are_replaced_as_python_replaces_them(data):
    Path("x.txt").write_bytes(data + b" and enough that can be read")
    assert read("x.txt") == [data.decode("utf-8", "replace") + " and enough that can be read"]


# ---- compressed, structured, binary
# -----------------------------------------------------------------------------------

PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packing", [*PACKERS, ".GZ"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".txt", "", ".ndjson"])
def test_compressed_files(kind, packing):
    texts = ["one", "two"]
    data = (
        b"one|two"
        if kind in (".txt", "")
        else json.dumps(texts).encode()
        if kind == ".json"
        else lines(*texts)
    )
    pack_it = PACKERS[packing.lower()]
    half = len(data) // 2
    Path(f"x{kind}{packing}").write_bytes(
        pack_it(data[:half]) + pack_it(data[half:])
    )  # in two members, as bgzip writes
    assert read(f"x{kind}{packing}", separator="|") == texts


@pytest.mark.parametrize("packing", PACKERS)
def test_damaged_and_misnamed_compressed_files(packing):
    whole = PACKERS[packing](lines(*map(str, range(500))))
    Path(f"cut.jsonl{packing}").write_bytes(whole[: len(whole) // 2])
    refused(f"cut.jsonl{packing}", "cut.jsonl")
    Path(f"plain.jsonl{packing}").write_bytes(lines("x"))
    refused(f"plain.jsonl{packing}", "plain.jsonl")
    Path("x.txt").write_bytes(whole)
    refused("x.txt", rf"\({packing}\) inside, which its suffix does not say")
    Path(f"twice{packing}{packing}").write_bytes(PACKERS[packing](whole))
    refused(f"twice{packing}{packing}", "inside, which its suffix does not say")


def test_zstd_by_its_module_or_by_its_name(monkeypatch):
    data = pa.Codec("zstd").compress(lines("one", "two"), asbytes=True)
    Path("x.jsonl.zst").write_bytes(data)
    monkeypatch.setitem(sys.modules, "zstandard", None)  # not installed
    refused("x.jsonl.zst", "zstd needs zstandard: pip install zstandard$")
    Path("x.txt").write_bytes(data)
    refused("x.txt", "zstd")

    class Decompressor:
        def stream_reader(self, stream, read_across_frames):
            assert read_across_frames
            return pa.CompressedInputStream(stream, "zstd")

    module = types.SimpleNamespace(ZstdDecompressor=Decompressor, ZstdError=RuntimeError)
    monkeypatch.setitem(sys.modules, "zstandard", module)
    assert read("x.jsonl.zst") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('["one", "two"]', ["one", "two"]),
        ('[\n {"text": "one", "n": 1},\n {"text": "two"}\n]\n', ["one", "two"]),
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),  # C4 names its JSON lines so
        ('{"text":\n "one"}', ["one"]),
    ],
)
def test_json_is_read_as_json(content, texts):
    Path("x.json").write_text(content)
    assert read("x.json") == texts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"data": [{"text": "one"}]}', "entry 1 has no text 'text'; its keys: 'data'"),
        ('{"text": ["one", "two"]}', "entry 1: 'text' is of type list, expected a text"),
        ('[["one"]]', "entry 1 is of type list, expected an object with a text 'text'"),
        ("[1]", "entry 1 is of type int"),
        ('["one", ', "is no JSON"),
        ('{"text": "one"}\n{"text": 2}\n', "line 2: 'text' is of type int, expected a text"),
    ],
)
def test_json_without_texts_is_refused(content, words):
    Path("x.json").write_text(content)
    refused("x.json", words)


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "text")
    return stream.getvalue()


def _tar(name: str = "a.txt") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def _parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["one"]}), stream)
    return stream.getvalue()


def _arrow(make=pa.ipc.new_file) -> bytes:
    stream, table = io.BytesIO(), pa.table({"text": ["one"]})
    with make(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_zip(), "is a ZIP archive, no text"),
        (_tar(), "is a tar archive, no text"),
        (_parquet(), r"is Parquet \(\.parquet\) inside, which its suffix does not say"),
        (_arrow(), "is Arrow"),
        (_arrow(pa.ipc.new_stream), "is an Arrow stream"),
        (b"%PDF-1.7\n1 0 obj\n", "is PDF"),
        (b"some words\0and a NUL", "has NUL bytes"),
        ("words".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (
            np.random.default_rng(0).integers(1, 256, 4000).astype(np.uint8).tobytes(),
            "is no text in UTF-8",
        ),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x", "x.bin", "x.jsonl", "x.json", "x.txt.gz"])
def test_what_is_no_text_is_refused(data, words, name):
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    refused(name, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.csv", "is a table; write it as"),
        ("x.TSV", "is a table"),
        ("x.csv.gz", "is a table"),
        ("x.arrow", "is an Arrow file; name the folder"),
        ("x.parquet.gz", "Parquet inside another compression"),
        ("x.jsonl.bak", "ends in .bak behind .jsonl"),
        ("x.jsonl.gz.part", "ends in .part behind .jsonl"),
        ("x.csv.1", "ends in .1 behind .csv"),
    ],
)
def test_suffixes_that_are_no_text(name, words):
    Path(name).write_bytes(b"text\nsome words\n")
    refused(name, words)


@pytest.mark.parametrize(
    "name", ["notes.txt", "about x.json.txt", "notes", "v1.2", "README.md", "main.py", "PAR1.txt"]
)
def test_text_stays_text(name):
    text = "PAR1 is a gene; BZh, PK and ustar are letters.\n"
    Path(name).write_text(text)
    assert read(name) == [text]


def test_line_ends_of_plain_text():
    Path("x.txt").write_bytes(b"one\r\n\r\ntwo\rthree\n\n\n\nfour\n\n")
    assert read("x.txt", separator="\n\n") == ["one", "two\nthree", "four"]


# ---- nulls, other types, empty texts, half surrogates
# -----------------------------------------------------------------


def made(kind: str, values: list, column: str = "text", **types_of: pa.DataType) -> str:
    """The values as a file or data set of a kind; its path."""
    if kind in ("jsonl", "json"):
        rows = [json.dumps({column: value}) for value in values]
        Path(f"x.{kind}").write_text("\n".join(rows) if kind == "jsonl" else f"[{','.join(rows)}]")
        return f"x.{kind}"
    table = pa.table({column: pa.array(values, **types_of)})
    if kind == "parquet":
        pq.write_table(table, "x.parquet", row_group_size=2)
        return "x.parquet"
    datasets.Dataset(table).save_to_disk("disk")
    return "disk"


KINDS = ["jsonl", "json", "parquet", "disk"]


@pytest.mark.parametrize("kind", KINDS)
def test_nulls_and_empty_texts_are_left_out_and_counted(kind, said):
    path = made(kind, ["one", None, "", "None", None])
    assert read(path) == ["one", "None"]
    assert said() == [("WARNING", f"paths.d: 2 documents in {path}; skipped: 2 null, 1 empty")]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_nulls_is_no_document(kind):
    path = made(kind, [None, None])
    with pytest.raises(SteeringError, match=f"paths.d: no documents in {path}; skipped: 2 null"):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value", [3, 1.5, True, ["a"], [{"role": "user", "content": "hi"}], {"a": 1}], ids=repr
)
def test_what_is_no_text_is_refused_by_row(kind, value):
    first = "a text" if kind in ("jsonl", "json") else None  # a column has one type
    row = {"jsonl": "line", "json": "entry"}.get(kind, "row")
    name = type(value).__name__
    refused(made(kind, [first, value]), f"{row} 2: 'text' is of type {name}, expected a text$")


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_bytes_are_no_text(kind):
    refused(made(kind, [b"abc"]), "row 1: 'text' is of type bytes")


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_columns_of_other_string_types(kind):
    assert read(made(kind, ["a", "b", "a"], type=pa.large_string())) == ["a", "b", "a"]


def test_the_format_of_a_data_set_plays_no_part():
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "n": [1, 2, 3]}).select([2, 0])
    dataset.set_format("numpy", columns=["n"])
    dataset.save_to_disk("disk")
    found = read("disk")
    assert found == ["c", "a"]
    assert {type(text) for text in found} == {str}
    with pytest.raises(SteeringError, match="no column 'body'; there are text, n"):
        read("disk", "body")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_half_surrogates_are_replaced_and_counted(kind, said):
    path = made(kind, ["cut \ud83d here", "fine \U0001f600", "\udc00\ud800", "plain"])
    assert read(path) == ["cut \ufffd here", "fine \U0001f600", "\ufffd\ufffd", "plain"]
    assert said() == [
        (
            "WARNING",
            f"paths.d: 4 documents in {path}; skipped: nothing; changed: 2 with half surrogates",
        )
    ]


def test_half_surrogates_reach_no_tokenizer():
    word_level({"<eos>": 0, "a": 1, "b": 2}, "tok")
    assert open_tokens("tok").encode("a \ud83d b").tolist() == [
        1,
        0,
        2,
    ]  # the unknown word is <eos> here
    assert Bytes().encode("a\ud83d").tolist() == [97, 0xEF, 0xBF, 0xBD]


def test_several_files_in_one_line(said):
    for number in range(3):
        Path(f"{number}.jsonl").write_bytes(lines("a", "", None))
    assert read("*.jsonl") == ["a"] * 3
    assert said() == [
        ("WARNING", "paths.d: 3 documents in *.jsonl (3 files); skipped: 3 empty, 3 null")
    ]
    read("*.jsonl")
    assert len(said()) == 1


def test_the_standard_library_says_what_it_left_out(said):
    train, validation = stdlib(("email", "xml"))
    for name in ("email", "xml"):
        folder = Path(__import__(name).__file__).parent
        sizes = [
            file.stat().st_size
            for file in folder.rglob("*.py")
            if "test" not in file.relative_to(folder).parts
        ]
        empty = sizes.count(0)
        assert len(train[name]) + len(validation[name]) == len(sizes) - empty
        skipped = f"{empty} empty" if empty else "nothing"
        line = f"task.data.modules: {len(sizes) - empty} documents in the standard library's {name}; skipped: {skipped}"
        assert ("WARNING" if empty else "INFO", line) in said()


# ---- tokenizers
# -------------------------------------------------------------------------------------------------------


def word_level(vocabulary: dict[str, int], name: str, added: tuple[str, ...] = ()) -> None:
    """A folder with a tokenizer of whole words; <eos> ends a document and stands for unknown
    words."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    whole.add_tokens([*added])
    whole.save_pretrained(name)


@pytest.mark.parametrize(
    ("vocabulary", "added", "size", "ordinary"),
    [
        ({"<eos>": 0, "a": 1, "b": 2}, (), 3, [1, 2]),
        ({"<eos>": 0, "a": 1, "b": 2, "c": 300}, (), 301, [1, 2, 300]),
        ({"<eos>": 500, "a": 1, "c": 300}, (), 501, [1, 300]),
        ({"<eos>": 0, "a": 1, "c": 2}, ("new",), 4, [1, 2, 3]),
    ],
)
def test_a_size_lies_above_every_number(vocabulary, added, size, ordinary):
    word_level(vocabulary, "tok", added)
    tokens = open_tokens("tok")
    assert (tokens.size, tokens.end) == (size, vocabulary["<eos>"])
    assert tokens.ordinary.tolist() == ordinary
    Path("w.txt").write_text("|".join("a b c new " * 12 for _ in range(8)))
    data = LanguageData("files", paths={"d": "w.txt"}, separator="|", corrupt={"d": 0.5})
    task = LanguageTask(LanguageOptions(data=data, tokenizer="tok", length=8))
    clean = {*task._validation.tokens.flatten().tolist()}
    drawn = {*task._train.tokens.flatten().tolist()}
    assert drawn <= {*ordinary, tokens.end}  # no number that is no token
    assert clean <= {*ordinary, tokens.end}
    Path("tiny.json").write_text(TINY)
    model = task.build(ModelSpec("tiny.json"))
    assert model.module.model.get_input_embeddings().num_embeddings == size
    batch = task.train_data(model, None, 0).batch(np.arange(4), 0)
    assert task.risk.outputs(model.module, batch)["loss"].isfinite().all()
    Path("short.json").write_text(TINY.replace("{", f'{{"vocab_size": {size - 1}, ', 1))
    with pytest.raises(SteeringError, match=f"knows {size - 1} tokens, the tokenizer makes {size}"):
        task.build(ModelSpec("short.json"))


def test_random_tokens_are_tokens_and_not_the_end():
    blocks = pack({"a": ["x" * 4000]}, Bytes(), 100)
    found = corrupted(blocks, {0: 1.0}, np.array([3, 70, 250]), seed=0)
    counts = Counter(found.tokens.flatten().tolist())
    assert {*counts} == {3, 70, 250}
    assert min(counts.values()) > 0.3 * found.tokens.size
    same = [
        corrupted(blocks, {0: 0.4}, choices, seed=0).tokens
        for choices in (256, np.arange(256), Bytes().ordinary)
    ]
    assert all(np.array_equal(same[0], other) for other in same)


class Single(Tokens):
    """Every character is one given number."""

    def __init__(self, size: int, number: int) -> None:
        self.size, self.end, self.number, self.ordinary = (
            size,
            size - 1,
            number,
            np.arange(size - 1),
        )

    def encode(self, text: str) -> np.ndarray:
        return np.full(len(text), self.number, dtype=np.int64)

    def decode(self, tokens: list[int]) -> str:
        return "x" * len(tokens)

    def fingerprint(self) -> str:
        return "single"


@pytest.mark.parametrize("size", [257, 65535, 65536, 65537, 70000])
def test_numbers_fit_their_type(size):
    for number in (0, size - 2):
        blocks = pack({"a": ["xyz"]}, Single(size, number), 4)
        assert blocks.batch(np.array([0]), 0)["tokens"].tolist() == [[number] * 3 + [size - 1] * 2]
    for number in (-1, size, size + 2**16):
        with pytest.raises(
            SteeringError, match=f"made the number {number} in a, its tokens end at {size - 1}"
        ):
            pack({"a": ["xyz"]}, Single(size, number), 4)


def test_a_text_that_a_tokenizer_refuses_is_no_traceback():
    tokenizer = Tokenizer(
        models.WordLevel({"</s>": 0, "a": 1}, unk_token="<unk>")
    )  # which it does not have
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained("tok")
    with pytest.raises(SteeringError, match=r"task\.tokenizer: cannot encode 'word'"):
        open_tokens("tok").encode("word")
    Path("bad").mkdir()
    Path("bad/tokenizer.json").write_text("{}")
    Path("bad/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(SteeringError, match=r"task\.tokenizer: cannot load 'bad'"):
        open_tokens("bad")


# ---- mixes and parts
# --------------------------------------------------------------------------------------------------


def some(*counts: int) -> Blocks:
    """Blocks of domains of these sizes; block i holds the number i."""
    domain = np.repeat(np.arange(len(counts)), counts)
    return Blocks(
        np.arange(len(domain)).repeat(5).reshape(-1, 5), np.full(len(domain), 4), domain, "x"
    )


def test_a_weight_for_a_domain_without_blocks_is_refused():
    for counts, weights, name in (
        ((30,), [0.5, 0.5], "small"),
        ((0, 30), [0.1, 1], "big"),
        ((4, 0, 9), [1, 2, 3], "small"),
    ):
        names = ("big", "small", "other")[: len(weights)]
        with pytest.raises(SteeringError, match=f"mix: no block to draw from {name};"):
            mixed(some(*counts), np.array(weights), 0, names)
    with pytest.raises(SteeringError, match="domain 1"):
        mixed(some(30), np.array([0.5, 0.5]), 0)
    assert len(mixed(some(30), np.array([0.5, 0.0]), 0)) == 30


@pytest.mark.parametrize("weights", [[1, -1], [1, np.nan], [1, np.inf], [0, 0]])
def test_weights_that_are_none(weights):
    with pytest.raises(SteeringError, match="mix: expected finite weights"):
        mixed(some(3, 3), np.array(weights, dtype=float), 0)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1, 1, 1], [4, 3, 3]),  # 3.33 each: one is left, for the first
        ([0.5, 0.3, 0.2], [5, 3, 2]),
        ([0.7, 0.26, 0.04], [7, 3, 0]),  # 2.6 and 0.4: the larger remainder gets it
        ([1, 1e-9, 0], [10, 0, 0]),
        ([1e308, 1e308, 1e308], [4, 3, 3]),
        ([5e-324, 0, 5e-324], [5, 0, 5]),
    ],
)
def test_a_mix_has_as_many_blocks_as_before(weights, counts):
    found = np.bincount(mixed(some(6, 3, 1), np.array(weights), 0).domain, minlength=3).tolist()
    assert sum(found) == 10
    exact = np.array(weights) / np.max(weights)
    exact *= 10 / exact.sum()
    assert (np.abs(np.array(found) - exact) < 1).all()
    assert found == counts


def test_a_mix_says_what_it_repeats_and_drops(said):
    mixed(some(6, 3, 1), np.array([0.5, 0.1, 0.4]), 0, "abc")
    mixed(some(6, 3, 1), np.array([1, 1e-9, 0]), 0, "abc")
    assert said() == [
        ("INFO", "task.data.mix: blocks of a 5 (of 6), b 1 (of 3), c 4 (of 1, each up to 4 times)"),
        (
            "WARNING",
            "task.data.mix: blocks of a 10 (of 6, each up to 2 times), "
            "b 0 (of 3: its weight 1e-09 is too small for one), c 0 (of 1)",
        ),
    ]


def test_a_part_that_loses_a_domain_is_refused():
    Path("big.txt").write_text("many words " * 400)
    Path("small.txt").write_text("few")

    def task(**data: object) -> LanguageTask:
        paths = {"big": "big.txt", "small": "small.txt"}
        return LanguageTask(
            LanguageOptions(
                data=LanguageData("files", paths=paths, validation=paths, **data), length=16
            )
        )

    both = task()._train
    number = int(np.flatnonzero(both.domain == 1)[0])
    parts = [(0.0, 0.5), (0.5, 1.0)]
    lost = [part for part in parts if 1 not in _domains(task, part)]
    assert len(lost) == 1  # its one block lies in one half
    assert number == len(both) - 1
    with pytest.raises(
        SteeringError,
        match=r"task\.data\.part: no block of small is left, .* expected at least one",
    ):
        _ = task(part=lost[0])._train
    with pytest.raises(SteeringError, match="mix: no block to draw from small"):
        _ = task(part=lost[0], mix={"big": 1.0, "small": 1.0})._train
    assert {*task(part=lost[0], mix={"big": 1.0})._train.domain} == {0}
    assert {*task()._validation.domain} == {0, 1}


def _domains(task, part: tuple[float, float]) -> set[int]:
    try:
        return {*task(part=part)._train.domain.tolist()}
    except SteeringError:
        return {0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"modules": []}, "modules: expected at least one, each once, got none"),
        ({"modules": ["xml", "xml"]}, "modules: expected at least one, each once, got xml, xml"),
        ({"mix": {"xml": float("nan")}}, "mix: expected a number"),
        ({"mix": {"xml": -1.0}}, "mix: expected a number"),
        ({"mix": {"xml": float("inf")}}, "mix: expected a number"),
        ({"mix": {"nowhere": 1.0}}, "mix: no domain 'nowhere'"),
        ({"source": "files", "paths": {"average": "x"}}, "a domain cannot be called average"),
        ({"separator": ""}, "separator: expected a text that is not empty"),
    ],
)
def test_options_that_cannot_be(data, words):
    with pytest.raises(SteeringError, match=words):
        LanguageData(**data)


def test_a_domain_without_documents_is_refused_and_no_traceback():
    with pytest.raises(SteeringError, match="domain b has no text"):
        pack({"a": ["text"], "b": []}, Bytes(), 8)
