"""``python -m compcomp``"""

from compcomp.cli import main

main()
