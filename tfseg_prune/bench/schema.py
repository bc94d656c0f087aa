"""What one timing of one model says: the values that the host and the phone both write as JSON."""

import dataclasses
import json
import math
import pathlib
import re
import types
import typing

from tfseg_prune import atomic

SCHEMA_VERSION = 1


def _check_numbers(value, *, signed=()):
    """Raises if a number of the dataclass `value` is NaN, infinite, or negative without leave."""
    wrong = []
    for field in dataclasses.fields(value):
        number = getattr(value, field.name)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            if not math.isfinite(number) or (number < 0 and field.name not in signed):
                wrong.append(f"{field.name}={number!r}")
    if wrong:
        raise ValueError(
            f"Invalid numbers in {type(value).__name__}. Expected: finite and not negative. "
            f"Received: {', '.join(wrong)}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The file that was timed.

    Args:
        name: what the caller calls it, such as `"dense"`.
        sha256: hash of the file, 64 hexadecimal digits.
        bytes: size of the file.
        precision: `"float32"`, `"float16"`, `"dynamic"`, `"int8"`. Defaults to `None`, unknown.
    """

    name: str
    sha256: str
    bytes: int
    precision: str | None = None

    def __post_init__(self):
        _check_numbers(self)
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(
                "Invalid sha256. Expected: 64 lower-case hexadecimal digits. "
                f"Received: {self.sha256!r}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Where it was timed.

    Args:
        kind: `"host"` or `"phone"`.
        name: host or phone model name.
        os: operating system and version.
        cpu: CPU model name.
        cores: number of CPU cores that the process may use.
        gpu: GPU and driver. Defaults to `None`, none used.
    """

    kind: str
    name: str
    os: str
    cpu: str
    cores: int
    gpu: str | None = None

    def __post_init__(self):
        _check_numbers(self)
        if self.kind not in ("host", "phone"):
            raise ValueError(
                f"Invalid device kind. Expected: 'host' or 'phone'. Received: {self.kind!r}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """What ran it.

    Args:
        runtime: name of the runtime, such as `"ai_edge_litert"`.
        version: its version.
        delegate: `"none"`, `"xnnpack"`, `"gpu"`, ...
        threads: CPU threads.
        build: the harness' own build, such as the version of this package or of the app.
        nodes: operators of the graph. Defaults to `None`, not counted.
        delegated: how many of them the delegate took. Defaults to `None`, not counted.
        left: names of the operators that it left. Defaults to `()`.
    """

    runtime: str
    version: str
    delegate: str
    threads: int
    build: str | None = None
    nodes: int | None = None
    delegated: int | None = None
    left: tuple[str, ...] = ()

    def __post_init__(self):
        _check_numbers(self)
        if self.delegated is not None and self.delegated > (self.nodes or 0):
            raise ValueError(
                f"Invalid delegation. Expected: delegated <= nodes. Received: {self.delegated} of "
                f"{self.nodes} nodes."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of one inference, in milliseconds.

    Args:
        init: opening the file until its tensors are allocated, in a fresh process.
        first: the first inference of that process.
        p50, p90, p99: percentiles of the runs after warm-up.
        mean, stdev, min: their mean, standard deviation and least.
    """

    init: float
    first: float
    p50: float
    p90: float
    p99: float
    mean: float
    stdev: float
    min: float

    def __post_init__(self):
        _check_numbers(self)
        if not self.min <= self.p50 <= self.p90 <= self.p99:
            raise ValueError(
                "Invalid latency. Expected: min <= p50 <= p90 <= p99. Received: "
                f"{self.min}, {self.p50}, {self.p90}, {self.p99}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sustained:
    """One point of a long run, which shows a phone that throttles.

    Args:
        seconds: since the start of the long run.
        p50_ms: median latency around then.
        thermal_status: the system's word for it. Defaults to `None`, not known.
    """

    seconds: float
    p50_ms: float
    thermal_status: str | None = None

    def __post_init__(self):
        _check_numbers(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What else was going on.

    Args:
        date: start, ISO 8601 with the time zone.
        load_average: one-minute load average of the machine at the start. Defaults to `None`.
        battery_celsius: battery temperature at the start. Defaults to `None`, no battery read.
        charging: whether it was charging. Defaults to `None`, not known.
        thermal_status: the system's word at the end. Defaults to `None`, not known.
    """

    date: str
    load_average: float | None = None
    battery_celsius: float | None = None
    charging: bool | None = None
    thermal_status: str | None = None

    def __post_init__(self):
        _check_numbers(self, signed=("battery_celsius",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One model timed on one device with one backend.

    Args:
        model, device, backend, conditions: see `Model`, `Device`, `Backend`, `Conditions`.
        latency_ms: see `Latency`.
        samples_ms: every timed run after warm-up, in order. Sample `i` of two results of the same
            `session` was taken in the same round, which is what makes their ratio hold.
        warmup_runs: runs thrown away before the first sample.
        steady: whether the latency had settled when sampling began.
        session: names the run of the harness in which models took turns.
        waited: whether the timer waited for the answer (an asynchronous GPU run does not).
            Defaults to `True`.
        peak_memory_bytes: what the model added to the resident memory of a fresh process at its
            peak. Defaults to `None`, not measured.
        sustained: points of a long run. Defaults to `()`, none made.
        argmax_agreement: share of pixels, in [0, 1], that have the reference's class on real
            images. Defaults to `None`, not measured.
        invalid: why the result must not be used, such as `"throttled"`. Defaults to `()`.

    Example:

    >>> Result.from_json(result.to_json()) == result  # doctest: +SKIP
    True
    """

    model: Model
    device: Device
    backend: Backend
    conditions: Conditions
    latency_ms: Latency
    samples_ms: tuple[float, ...]
    warmup_runs: int
    steady: bool
    session: str
    waited: bool = True
    peak_memory_bytes: int | None = None
    sustained: tuple[Sustained, ...] = ()
    argmax_agreement: float | None = None
    invalid: tuple[str, ...] = ()

    def __post_init__(self):
        _check_numbers(self)
        if not self.samples_ms or not all(0 < s < math.inf for s in self.samples_ms):
            raise ValueError(
                "Invalid samples_ms. Expected: one or more finite times above 0. "
                f"Received: {self.samples_ms[:5]!r}..."
            )
        if self.argmax_agreement is not None and self.argmax_agreement > 1:
            raise ValueError(
                "Invalid argmax_agreement. Expected: a share in [0, 1]. "
                f"Received: {self.argmax_agreement}."
            )

    def to_json(self):
        """Returns the result as a JSON object in a string, with the version of the schema."""
        return json.dumps(_document(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text):
        """Reads what `to_json` wrote.

        Args:
            text: the JSON.

        Raises:
            ValueError: if it is no JSON, another schema version, or has missing, unknown or wrong
                fields; all of them are listed.
        """
        return _parse(_loads(text, "the text"), "result")


def _document(result):
    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(result)}


def _loads(text, source):
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"Invalid bench result. Expected: JSON. Received: {source}: {error}."
        ) from None


def _parse(document, where):
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        version = document.get("schema_version") if isinstance(document, dict) else document
        raise ValueError(
            f"Invalid bench result. Expected: an object with schema_version {SCHEMA_VERSION}. "
            f"Received: {version!r} as {where}."
        )
    fields = {key: value for key, value in document.items() if key != "schema_version"}
    problems = []
    result = decode(Result, fields, where, problems)
    if problems:
        raise ValueError(
            f"Invalid bench result. Expected: schema version {SCHEMA_VERSION}. "
            f"Received: {'; '.join(problems)}."
        )
    return result


def decode(kind, value, where, problems):
    """Turns a JSON value into a dataclass, noting what does not fit.

    Args:
        kind: the dataclass, or the type of one of its fields.
        value: what `json.loads` gave.
        where: what the value is called in problems.
        problems: list that problems are added to.

    Returns:
        The `kind`, or something useless if there were problems.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            problems.append(f"{where} is no list")
            return ()
        item = typing.get_args(kind)[0]
        return tuple(decode(item, v, f"{where}[{i}]", problems) for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            problems.append(f"{where} is no object")
            return None
        before = len(problems)
        hints = typing.get_type_hints(kind)
        required = {
            f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
        }
        problems += [f"{where}.{key} is missing" for key in sorted(required - value.keys())]
        problems += [f"{where}.{key} is unknown" for key in sorted(value.keys() - hints.keys())]
        decoded = {
            key: decode(hints[key], v, f"{where}.{key}", problems)
            for key, v in value.items()
            if key in hints
        }
        if len(problems) > before:
            return None
        try:
            return kind(**decoded)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            return None
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where} is {value!r}, no {kind.__name__}")
        return None
    return kind(value)


def save(path, results):
    """Writes results to one JSON file, whole or not at all.

    Args:
        path: path of the file; its folder must exist.
        results: iterable of `Result`, for instance `time_models(...).values()`.

    Raises:
        ValueError: if the folder does not exist.

    Example:

    >>> save("bench.json", results.values())  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"Cannot write the results. Expected: an existing folder. Received: {path}."
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "results": [_document(result) for result in results],
    }
    atomic.write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def load(path):
    """Reads what `save` wrote.

    Args:
        path: path of the JSON file.

    Returns:
        Tuple of `Result`.

    Raises:
        ValueError: if the file is missing, no JSON, or does not follow the schema.

    Example:

    >>> dense, pruned = load("bench.json")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"Cannot read the results. Expected: a JSON file. Received: {path}.")
    document = _loads(path.read_text(encoding="utf-8"), path)
    if not isinstance(document, dict) or not isinstance(document.get("results"), list):
        raise ValueError(
            f"Invalid bench results. Expected: an object with a list `results`. Received: {path}."
        )
    return tuple(_parse(item, f"results[{i}]") for i, item in enumerate(document["results"]))
