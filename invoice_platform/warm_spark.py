"""What `spark-submit` runs in the warm Spark: its Connect server, for which `SparkConnectServer.main` would not do.

That one keeps each stopped query for an hour, with its session and plans: 3 to 4 MB, for which there is no setting
(`SparkConnectStreamingQueryCache`). A run asks what became of its query within seconds. And it gives each session a class
loader of its own, whatever the configuration says (`spark.sql.artifact.isolation.enabled`): see `session.spark_settings`.
"""

import os
from typing import Any

from py4j.java_gateway import GatewayParameters, JavaGateway

KEPT_SECONDS = 60
LOOK_SECONDS = 10
"""How often the server looks for what it need not keep. By default each minute."""


def main() -> None:
    """Serve until this Java ends."""
    gateway = JavaGateway(
        gateway_parameters=GatewayParameters(
            port=int(os.environ["PYSPARK_GATEWAY_PORT"]), auth_token=os.environ["PYSPARK_GATEWAY_SECRET"]
        )
    )
    jvm: Any = gateway.jvm
    forget_queries_soon(jvm)
    session = jvm.org.apache.spark.sql.classic.SparkSession.builder().getOrCreate()
    service = _service(jvm)
    service.start(session.sparkContext())
    service.server().awaitTermination()


def _service(jvm: Any) -> Any:
    return getattr(getattr(jvm.org.apache.spark.sql.connect.service, "SparkConnectService$"), "MODULE$")


def forget_queries_soon(jvm: Any) -> None:
    """Set how long this Java's Connect server keeps a query after its end, and how often it looks."""
    queries = _service(jvm).streamingSessionManager()
    times = {"stoppedQueryInactivityTimeout": KEPT_SECONDS, "sessionPollingPeriod": LOOK_SECONDS}
    for name, seconds in times.items():
        field = queries.getClass().getDeclaredField(name)
        field.setAccessible(True)
        field.set(queries, jvm.scala.concurrent.duration.Duration.create(seconds, "seconds"))


if __name__ == "__main__":
    main()
