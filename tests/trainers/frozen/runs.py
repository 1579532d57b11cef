"""What small runs of the frozen-feature methods have in common."""

from tests.trainers.plain import SMALL as ONE_SHOT

# Two views of each image instead of ten or twenty.
SMALL = (
    *ONE_SHOT,
    *(w for m in ("GDA", "TipAdapter", "TipAdapterF", "CLAP") for w in (f"TRAINER.{m}.VIEWS", "2")),
)
