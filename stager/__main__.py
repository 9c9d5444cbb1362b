"""``python -m stager``, and the self-contained program."""

from stager.cli import main
from stager.node import frozen

if __name__ == "__main__" and not frozen.become_worker():
    frozen.bring_certificates()
    main()
