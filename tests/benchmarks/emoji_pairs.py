"""Emoji of three vendors at 32×32 as a folder with tables: the pairs of configs/clip/few_pictures.yaml.

    python tests/benchmarks/emoji_pairs.py --data ../shared/data/image_text/emoji --output data/emoji

Reads `VENDOR-NNN.tar` (KEY.png, KEY.txt) and `index.tsv` (key, codepoints, caption). Of every concept that
at least two vendors draw, one picture of a vendor drawn at random is held out, until there are 1,000: its
name is known from another vendor, its drawing is not. The others are split at random, by picture: three
tenths to `few.tsv`, which a target may learn from, the rest to `pool.tsv`, a reference's.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import tarfile
from collections import defaultdict
from pathlib import Path

from PIL import Image

HELD_OUT, FEW, SIZE = 1000, 0.3, 32


def split(index: list[dict[str, str]], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Table -> rows of the index; no picture stands in two."""
    draw = random.Random(seed)
    concepts: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in sorted(index, key=lambda one: one["key"]):
        concepts[row["codepoints"]].append(row)
    several = [rows for rows in concepts.values() if len({row["vendor"] for row in rows}) > 1]
    held = [draw.choice(rows) for rows in draw.sample(several, min(HELD_OUT, len(several)))]
    keys = {row["key"] for row in held}
    rest = [row for rows in concepts.values() for row in rows if row["key"] not in keys]
    draw.shuffle(rest)
    few = round(FEW * len(rest))
    return {"heldout": held, "few": rest[:few], "pool": rest[few:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the shards")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split; docs/evidence.md has 0 and 1"
    )
    arguments = parser.parse_args()
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    for shard in sorted(arguments.data.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".png") else None
                if stream is not None:
                    picture = Image.open(io.BytesIO(stream.read())).convert("RGB")
                    small = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                    small.save(arguments.output / "images" / Path(member.name).name)
    with (arguments.data / "index.tsv").open(encoding="utf-8", newline="") as stream:
        index = list(csv.DictReader(stream, delimiter="\t"))
    for table, rows in split(index, arguments.seed).items():
        path = arguments.output / f"{table}.tsv"
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t", lineterminator="\n")
            writer.writerow(["image", "caption"])
            writer.writerows([f"images/{row['key']}.png", row["caption"]] for row in rows)
        print(f"{path}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
