"""How often each word occurs in the landed texts.

Source: `landing/text`. Sink: table `word_count`, complete mode: each micro-batch replaces the table with the whole result.
Checkpoint: one for ever, because it holds the counts; no segments. Replay: the same result again.
"""

from invoice_platform.assets.factory import stream_asset
from invoice_platform.schemas import WORD_COUNT
from invoice_platform.streaming.sinks import DeltaSink
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.stream import Stream
from invoice_platform.transforms import count_words

WORD_COUNT_STREAM = Stream(
    name="word_count",
    source=LandedFiles("text", segment_files=None),
    transform=count_words,
    sink=DeltaSink(WORD_COUNT, output_mode="complete"),
)

word_count = stream_asset(WORD_COUNT_STREAM, group="texts")
