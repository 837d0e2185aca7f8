"""Switch the nightly retraining of prefect.yaml on or off: `python -m flows.nightly [on|off]`, which is `make nightly`.

The server keeps the switch, so one must be running; restarts of the services leave it.
"""

import signal
import sys

from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from flows.deploy import connected, switch, switched

SLUG = "nightly"


def main() -> int:
    """Exit status 2 for an error of the user's."""
    word = sys.argv[1] if len(sys.argv) > 1 else "on"
    try:
        if word not in ("on", "off"):
            raise BigrError(f"SWITCH must be on or off, got {word}")
        with connected(patience_s=10) as client:
            known = {key: word == "on" for key in switched(client) if key[1] == SLUG}
            if not known:
                raise BigrError(f"The server has no schedule {SLUG}: start `make services`, which registers it")
            switch(client, known)
    except BigrError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sys.stdout.write(f"Nightly retraining is {word}: prefect.yaml says when\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
