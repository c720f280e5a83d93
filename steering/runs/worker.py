"""One run of a study in a process of its own:
`python -m steering.runs.worker FOLDER ASK.json DEVICE`; the driver starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from steering.errors import SteeringError


def main(words: list[str]) -> int:
    folder, file, device = words
    from steering.runs.execute import execute
    from steering.runs.store import Store
    from steering.runs.transport import read_ask
    from steering.runs.workshop import Workshop
    from steering.training.session import session

    try:
        ask = read_ask(Path(file))
        with session(device, ask.config.train.threads) as chosen:
            execute(ask, Workshop(Store(Path(folder)), chosen))
    except SteeringError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
