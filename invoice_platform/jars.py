"""The jars that Spark needs beyond its own, and those of a Kafka broker, resolved once at set-up and used by path.

`spark.jars.packages` would ask a registry at each session start, which costs 7 to 10 s and fails without a network.
Here Spark's own Ivy downloads what `SPARK` and `BROKER` list, and nothing else, when `make setup` runs this module.

The module needs the standard library alone, so that set-up can ask it about Java before anything is installed.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invoice_platform.errors import PlatformError

OLDEST_JAVA = 17
JAVA_SOURCES = Path(__file__).with_name("java")
OWN_JAR = "invoice-platform"


@dataclass(frozen=True)
class Jar:
    """One jar of a Maven repository, by its exact coordinates."""

    group: str
    artifact: str
    version: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True)
class JarSet:
    """Jars for one kind of process, in a folder of their own."""

    wanted_by: str
    """Who needs them, in words."""
    folder_name: str
    """Folder inside `jar_folder`; empty for that folder itself."""
    jars: tuple[Jar, ...]

    @property
    def folder(self) -> Path:
        return jar_folder() / self.folder_name

    @property
    def missing(self) -> list[Jar]:
        """Those that are not there, or cut short."""
        return [jar for jar in self.jars if not _is_jar(self.folder / jar.file_name)]

    def paths(self) -> list[Path]:
        """Return the path of every jar, in the order in which they are listed.

        Raises
        ------
        PlatformError
            If one is missing or damaged: names the folder, the jars and the remedy.
        """
        if missing := self.missing:
            names = ", ".join(jar.file_name for jar in missing)
            raise PlatformError(f"jars missing or damaged in {self.folder}: {names}: {_REMEDY}")
        return [self.folder / jar.file_name for jar in self.jars]

    def resolve(self) -> list[Path]:
        """Download the jars that are missing or damaged, remove those of other versions, and return all paths.

        Returns
        -------
        list[Path]
            The same as `paths`.

        Raises
        ------
        PlatformError
            If there is no usable Java, or if a download fails.

        Notes
        -----
        With all jars there it starts no Java and asks no network. A jar appears under its name only when it is whole,
        so an interrupted run leaves nothing half-made, and two runs at once do no harm.
        """
        if missing := self.missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Inside the folder, so that each move is a rename within one file system.
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".resolving-") as work:
                _download(missing, Path(work))
                for jar in missing:
                    os.replace(Path(work, "jars", jar.file_name), self.folder / jar.file_name)
        self._remove_other_versions()
        return self.paths()

    def _remove_other_versions(self) -> None:
        """Remove what an earlier pin left behind; jars that are none of this project's stay."""
        ours = {_bare_name(jar.file_name) for jar in self.jars}
        kept = {jar.file_name for jar in self.jars}
        for path in self.folder.glob("*.jar"):
            if path.name not in kept and _bare_name(path.name) in ours:
                path.unlink(missing_ok=True)


# Not transitive: of the 34 jars that Delta's own description asks for, Spark brings most itself, and the rest serve
# Delta's new kernel-based connector (`spark.databricks.delta.v2.enableMode`, off by default) and Unity Catalog alone.
# Who turns either on adds delta-kernel-api, delta-kernel-defaults, delta-kernel-unitycatalog and unitycatalog-client.
# Likewise Kafka's: what else its connector asks for (lz4, snappy, SLF4J) is among Spark's own.
SPARK = JarSet(
    "Spark",
    "",
    (
        # Delta Lake for Spark 4.2; the version is the one of the wheel delta-spark.
        Jar("io.delta", "delta-spark_4.2_2.13", "4.4.0"),
        # Reads and writes the transaction log, and settles who wins when two commit at once.
        Jar("io.delta", "delta-storage", "4.4.0"),
        # The Kafka source and sink; the version is Spark's.
        Jar("org.apache.spark", "spark-sql-kafka-0-10_2.13", "4.2.0"),
        # The connector builds every consumer's and producer's login with it, with delegation tokens or without.
        Jar("org.apache.spark", "spark-token-provider-kafka-0-10_2.13", "4.2.0"),
        # Speaks to Kafka; the version that the connector was built with.
        Jar("org.apache.kafka", "kafka-clients", "3.9.2"),
        # The connector keeps consumers in its pools; the version that the connector was built with.
        Jar("org.apache.commons", "commons-pool2", "2.13.1"),
        # Reads from and writes to Postgres.
        Jar("org.postgresql", "postgresql", "42.7.7"),
    ),
)
# A broker for development and tests. Apart, because its kafka-clients is of another version than Spark's. Found by
# trying: what else Kafka's description asks for is among Spark's own jars, which come after these on its class path
# (Scala, Jackson, SLF4J, log4j, the codecs), or serves what a broker on loopback has no use for (OAuth, tiered storage).
_KAFKA = "4.1.0"
BROKER = JarSet(
    "a Kafka broker",
    "kafka",
    (
        # The broker and the tool that formats its folder.
        Jar("org.apache.kafka", "kafka_2.13", _KAFKA),
        # The protocol, which broker and client share.
        Jar("org.apache.kafka", "kafka-clients", _KAFKA),
        # Configuration and request handling that have moved out of kafka_2.13.
        Jar("org.apache.kafka", "kafka-server", _KAFKA),
        Jar("org.apache.kafka", "kafka-server-common", _KAFKA),
        # KRaft: the metadata log, and what is in it.
        Jar("org.apache.kafka", "kafka-raft", _KAFKA),
        Jar("org.apache.kafka", "kafka-metadata", _KAFKA),
        # The messages on disk.
        Jar("org.apache.kafka", "kafka-storage", _KAFKA),
        Jar("org.apache.kafka", "kafka-storage-api", _KAFKA),
        # Consumer groups, share groups, transactions.
        Jar("org.apache.kafka", "kafka-coordinator-common", _KAFKA),
        Jar("org.apache.kafka", "kafka-group-coordinator", _KAFKA),
        Jar("org.apache.kafka", "kafka-group-coordinator-api", _KAFKA),
        Jar("org.apache.kafka", "kafka-share-coordinator", _KAFKA),
        Jar("org.apache.kafka", "kafka-transaction-coordinator", _KAFKA),
        # The group coordinator's: hashes of subscriptions, patterns of topics, histograms.
        Jar("com.dynatrace.hash4j", "hash4j", "0.22.0"),
        Jar("com.google.re2j", "re2j", "1.8"),
        Jar("org.hdrhistogram", "HdrHistogram", "2.2.2"),
        # The metadata's immutable maps.
        Jar("org.pcollections", "pcollections", "4.0.2"),
        # Logs and metrics.
        Jar("com.typesafe.scala-logging", "scala-logging_2.13", "3.9.5"),
        Jar("com.yammer.metrics", "metrics-core", "2.2.0"),
        # The arguments of the broker and of the tool.
        Jar("net.sf.jopt-simple", "jopt-simple", "5.0.4"),
        Jar("net.sourceforge.argparse4j", "argparse4j", "0.7.0"),
        # Addresses in `listeners`.
        Jar("commons-validator", "commons-validator", "1.9.0"),
    ),
)

_REMEDY = "run `make setup` or `python -m invoice_platform.jars`"


def jar_folder() -> Path:
    """Return the folder of the jars: `INVOICE_PLATFORM_JARS` if set, else one inside the Python environment."""
    chosen = os.environ.get("INVOICE_PLATFORM_JARS")
    return Path(chosen) if chosen else Path(sys.prefix) / "share" / "invoice_platform" / "jars"


def jar_paths() -> list[Path]:
    """Return the path of every jar that Spark is given: see `JarSet.paths`, and `java_classes` for the one that is made here."""
    made = own_jar()
    return [*SPARK.paths(), *([made] if made.exists() else [])]


def own_jar() -> Path:
    """Return where the jar of the classes in `java/` is, or would be; `java_classes` makes it."""
    text = b"".join(source.read_bytes() for source in java_sources())
    return jar_folder() / f"{OWN_JAR}-{hashlib.sha256(text).hexdigest()[:16]}.jar"


def java_sources() -> list[Path]:
    """Return the files in `java/`."""
    return sorted(JAVA_SOURCES.glob("*.java"))


@contextmanager
def put_in_place(path: Path, of_other_versions: str) -> Iterator[Path]:
    """A folder to make a file in, under the name of `path`, where it is put, whole, when the block ends; others are removed.

    Parameters
    ----------
    of_other_versions : str
        Pattern of the names beside `path` that files of other versions have.
    """
    # Inside its own folder, so that the move is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as work:
        yield Path(work)
        os.replace(Path(work, path.name), path)
    for other in path.parent.glob(of_other_versions):
        if other != path:
            other.unlink(missing_ok=True)


def make_if_missing(path: Path, make: Callable[[Path], None], without_it: str) -> int:
    """Let `make` make what Spark starts without, too: what hinders is said, after what that means, and no more. Exit code 0."""
    if not path.exists():
        try:
            make(path)
        except PlatformError as error:
            print(f"{without_it}: {error}", file=sys.stderr)
    return 0


def spark_folder() -> Path:
    """Return the folder of the installed pyspark, which is Spark's home.

    Raises
    ------
    PlatformError
        If pyspark is not installed.
    """
    # Not by import: that takes most of a second, and only the folder is wanted.
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise PlatformError(f"pyspark is not installed in {sys.prefix}: run `make setup`")
    return Path(spec.origin).parent


def class_archive() -> Path:
    """Return where the class-data archive of this Java with these jars is, or would be; `class_data` makes it."""
    java = find_java()
    parts = [spark_folder() / "version.py", *jar_paths(), *([java.resolve()] if java else [])]
    facts = [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in parts]
    return jar_folder() / f"classes-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.jsa"


def find_java() -> Path | None:
    """Return the Java that Spark would start: the one in `JAVA_HOME` if set, else the first on `PATH`."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    return Path(found) if found else None


def java_version(java: Path) -> int | None:
    """Return the major version that this `java` reports (8 for "1.8.0_392"), or None when it does not run."""
    return _reported_version(java, "-version")


def require_java() -> Path:
    """Return the Java that Spark would start, having made sure that Spark can use it.

    Raises
    ------
    PlatformError
        If there is none, it does not run, it is older than Java 17, or it was built without a module that Spark needs.
    """
    java = find_java()
    # The version and the module in one start of a JVM; what is amiss is only asked when something is.
    if java and (_reported_version(java, "--add-modules", "jdk.incubator.vector", "-version") or 0) >= OLDEST_JAVA:
        return java
    home = os.environ.get("JAVA_HOME")
    if java is None:
        found = f"JAVA_HOME={home} has no bin/java" if home else "none was found"
    elif (version := java_version(java)) is None:
        found = f"{java} does not run"
    elif version < OLDEST_JAVA:
        found = f"{java} is Java {version}"
    else:
        found = f"{java} is cut down: it lacks the module jdk.incubator.vector"
    raise PlatformError(
        f"Java {OLDEST_JAVA} or later is needed and {found}: install one "
        f"(Debian: apt-get install openjdk-{OLDEST_JAVA}-jdk-headless, or a later one) or set JAVA_HOME to its folder"
    )


def _reported_version(java: Path, *arguments: str) -> int | None:
    try:
        ran = subprocess.run([java, *arguments], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', ran.stderr + ran.stdout)
    return int(found[1]) if found and ran.returncode == 0 else None


def _is_jar(path: Path) -> bool:
    # Reads the end of the file alone, where the list of a zip's contents is: cheap, and a truncated file fails it.
    return zipfile.is_zipfile(path)


def _is_whole(path: Path) -> bool:
    """Read all of a jar, so that damage anywhere in it shows."""
    if not _is_jar(path):
        return False
    with zipfile.ZipFile(path) as jar:
        return jar.testzip() is None


def _download(jars: list[Jar], work: Path) -> None:
    """Put these jars into `work/jars`, by the Ivy that comes with Spark; everything it writes stays in `work`."""
    java = require_java()
    spark = spark_folder()
    wanted = "".join(
        f'<dependency org="{jar.group}" name="{jar.artifact}" rev="{jar.version}" transitive="false"/>' for jar in jars
    )
    (work / "ivy.xml").write_text(
        '<ivy-module version="2.0"><info organisation="invoice_platform" module="jars"/>'
        '<configurations defaultconfmapping="default->master"><conf name="default"/></configurations>'
        f"<dependencies>{wanted}</dependencies></ivy-module>",
        encoding="utf-8",
    )
    # Without settings of its own Ivy would read those in the user's home, and keep a cache there.
    (work / "settings.xml").write_text(
        '<ivysettings><settings defaultResolver="central"/><caches defaultCacheDir="${ivy.settings.dir}/cache"/>'
        '<resolvers><ibiblio name="central" m2compatible="true"/></resolvers></ivysettings>',
        encoding="utf-8",
    )
    ivy = [java, "-cp", str(spark / "jars" / "*"), "org.apache.ivy.Main"]
    files = ["-settings", str(work / "settings.xml"), "-ivy", str(work / "ivy.xml")]
    # A bundle is a jar too, by the name that OSGi has for it.
    retrieve = ["-retrieve", str(work / "jars" / "[artifact]-[revision].[ext]"), "-types", "jar", "bundle"]
    ran = subprocess.run([*ivy, *files, *retrieve], capture_output=True, text=True, errors="replace", check=False)
    for jar in jars:
        path = work / "jars" / jar.file_name
        if not _is_whole(path):
            raise PlatformError(
                f"{jar.group}:{jar.artifact}:{jar.version} could not be fetched from Maven Central "
                f"({_why(ran.stdout + ran.stderr)}): check the network, then {_REMEDY}"
            )


def _why(said: str) -> str:
    """The line of Ivy's output that says most about a failure."""
    lines = [line.strip(" \t:*") for line in said.splitlines()]
    # Ivy ends with "not found" whatever the cause, so what it said of the cause comes first.
    for telling in ("access error|refused|unknown host|timed out|no space|denied", "not found", "."):
        for line in lines:
            if re.search(telling, line, re.IGNORECASE):
                return line
    return "no output"


def _bare_name(file_name: str) -> str:
    """delta-spark_4.2_2.13-4.4.0.jar -> delta-spark"""
    return re.split(r"[-_]\d", file_name)[0]


def main(arguments: list[str]) -> int:
    """Fetch what is missing; `--check-java` only says whether there is a Java that Spark can use."""
    try:
        if arguments == ["--check-java"]:
            require_java()
        else:
            for jars in (SPARK, BROKER):
                if jars.missing:
                    print(f"fetching the jars that {jars.wanted_by} needs into {jars.folder}", file=sys.stderr)
                jars.resolve()
    except PlatformError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
