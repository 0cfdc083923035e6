"""Tables that people ask for, kept up to date as invoices come.

Sources: rows appended to the bronze tables (`customer_rewards`, `loyalty_notifications`) or to `invoice_line_items` (sales). Sinks:
tables with one row a key (update mode, MERGE), and for notifications a table and the Kafka topic of that name. Checkpoint: one
each for ever, because it holds the sums so far. Replay: the MERGE of a micro-batch sets the same rows to the same values
again; a notification may be sent again, with the same record id.
"""

from invoice_platform.assets.factory import stream_asset
from invoice_platform.schemas import (
    CUSTOMER_REWARDS,
    INVOICE_LINE_ITEMS,
    INVOICES,
    KAFKA_INVOICES,
    LOYALTY_NOTIFICATIONS,
    PRODUCT_SALES_WINDOWS,
    STORE_DAILY_SALES,
)
from invoice_platform.streaming.sinks import DeltaSink, DeltaUpsert, KafkaSink, Several
from invoice_platform.streaming.sources import DeltaTable
from invoice_platform.streaming.stream import Stream
from invoice_platform.transforms import (
    notify_loyal_customers,
    reward_customers,
    sum_product_windows,
    sum_store_days,
)

REWARDS_STREAM = Stream(
    name="customer_rewards",
    source=DeltaTable(INVOICES, KAFKA_INVOICES),
    transform=reward_customers,
    sink=DeltaUpsert(CUSTOMER_REWARDS, keys=("customer_card_no",)),
)

STORE_SALES_STREAM = Stream(
    name="store_daily_sales",
    source=DeltaTable(INVOICE_LINE_ITEMS),
    transform=sum_store_days,
    sink=DeltaUpsert(STORE_DAILY_SALES, keys=("store_id", "sales_date")),
)

PRODUCT_SALES_STREAM = Stream(
    name="product_sales_windows",
    source=DeltaTable(INVOICE_LINE_ITEMS),
    transform=sum_product_windows,
    sink=DeltaUpsert(PRODUCT_SALES_WINDOWS, keys=("window_start", "item_code")),
)

NOTIFICATIONS_STREAM = Stream(
    name="loyalty_notifications",
    source=DeltaTable(INVOICES, KAFKA_INVOICES),
    transform=notify_loyal_customers,
    sink=Several(
        DeltaSink(LOYALTY_NOTIFICATIONS),
        KafkaSink("loyalty_notifications", key="customer_card_no", id=("invoice_number",)),
    ),
)

customer_rewards = stream_asset(REWARDS_STREAM, group="gold")
store_daily_sales = stream_asset(STORE_SALES_STREAM, group="gold")
product_sales_windows = stream_asset(PRODUCT_SALES_STREAM, group="gold")
loyalty_notifications = stream_asset(NOTIFICATIONS_STREAM, group="gold")
