"""From the mapping that a YAML file holds to a ``Topology``, or to all of its mistakes at once.

Pure: where each key was written, the number of cores, the file's own path and the question whether
a file exists are handed in.  ``shell/config_file.py`` calls it for every command; tests feed it
dicts.  ``schema.py`` holds what single keys take; what is checked here concerns several keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from .problems import KeyPath, Origin, Problem, Problems, show, spell_path
from .readers import MODULE, NAME, Reader, is_loopback, is_mapping, is_whole
from .schema import (
    BROKER_KEYS,
    COUNT,
    DURABILITY_KEYS,
    LIMITS_KEYS,
    LOGS_KEYS,
    POLICY_KEYS,
    SECTIONS,
    SHORT_WORKERS_KEYS,
    TASKS,
    TOP_KEYS,
    TOPOLOGY_KEYS,
    WORKER_KEYS,
    WORKERS_MAX,
    sections_with,
)
from .topology import (
    DEFAULT_BROKER_PORT,
    Address,
    DurabilityConfig,
    Limits,
    LogsConfig,
    PolicyConfig,
    Tls,
    Topology,
    WorkerConfig,
)

DEFAULT_NAME: Final = "lb"
#: what a topology without ``workers`` runs
DEFAULT_WORKERS: Final[tuple[Mapping[str, Any], ...]] = tuple(
    {"name": f"worker-{index}", "port": 9000 + index} for index in (1, 2, 3)
)
#: what the system allows for the path of a Unix socket (``sun_path`` less its final NUL)
SOCKET_PATH_BYTES_MAX: Final = 107


def build_topology(
    mapping: object,
    origins: Mapping[KeyPath, Origin],
    *,
    source: str,
    cores: int,
    file_exists: Callable[[str], bool],
) -> Topology | list[Problem]:
    """Check a whole topology and build it.

    ``mapping`` is the content of the YAML, ``origins`` where each key path was written.  ``source``
    is the absolute path of the file: relative paths start from its folder.  ``cores`` is how many
    this machine has.  Returns the topology, or every problem found; raises nothing.
    """
    builder = _Builder(Problems(origins), source.rpartition("/")[0], cores, file_exists)
    topology = builder.topology(mapping, source)
    return builder.problems.found or topology


def default_worker_name(index: int) -> str:
    """The name of the worker at ``index`` of the list when it is given none."""
    return f"worker-{index + 1}"


@dataclass(slots=True)
class _Builder:
    """One pass over one topology.  After a problem it goes on with the default of that key."""

    problems: Problems
    folder: str
    cores: int
    file_exists: Callable[[str], bool]
    #: names and addresses that are taken, and by which key
    names: dict[str, KeyPath] = field(default_factory=dict)
    addresses: dict[str, KeyPath] = field(default_factory=dict)

    def topology(self, mapping: object, source: str) -> Topology:
        """The topology, which counts only when no problem was noted."""
        if not is_mapping(mapping):
            self.problems.refuse((), "keys such as `broker:` and `workers:`", mapping)
            mapping = {}
        for key in mapping:
            if key not in TOPOLOGY_KEYS:
                self._unknown((_text(key),), TOPOLOGY_KEYS)
        top = self._keys((), {key: mapping[key] for key in TOP_KEYS if key in mapping}, TOP_KEYS)
        broker, tls = self._broker(mapping)
        return Topology(
            name=top.get("name", DEFAULT_NAME),
            broker=broker,
            workers=self._workers(mapping.get("workers", DEFAULT_WORKERS)),
            policy=self._policy(mapping),
            tasks=self._tasks(mapping.get("tasks", ())),
            logs=LogsConfig(**self._section(mapping, "logs", LOGS_KEYS)),
            limits=Limits(**self._section(mapping, "limits", LIMITS_KEYS)),
            tls=tls,
            durability=self._durability(mapping),
            source=source,
        )

    def _section(
        self, mapping: Mapping[Any, Any], name: str, readers: Mapping[str, Reader]
    ) -> dict[str, Any]:
        """The read keys of a section of the top level; empty when the section is not there."""
        return self._keys((name,), mapping[name], readers) if name in mapping else {}

    def _keys(
        self, path: KeyPath, section: object, readers: Mapping[str, Reader]
    ) -> dict[str, Any]:
        """Read every key of one mapping; keys with a problem are left out."""
        if not is_mapping(section):
            examples = " and ".join(f"`{key}:`" for key in list(readers)[:2])
            advice = "" if section is not None else "give it keys or remove the line"
            self.problems.refuse(path, f"keys such as {examples}", section, advice)
            return {}
        values: dict[str, Any] = {}
        for key, value in section.items():
            reader = readers.get(key) if isinstance(key, str) else None
            if reader is None:
                self._unknown((*path, _text(key)), readers)
                continue
            item = reader.read(self.problems, (*path, key), value)
            if item is not None:
                values[key] = item
        return values

    def _unknown(self, path: KeyPath, keys: Iterable[str]) -> None:
        self.problems.unknown_key(path, keys, sections_with(str(path[-1])))

    def _broker(self, mapping: Mapping[Any, Any]) -> tuple[Address, Tls | None]:
        values = self._section(mapping, "broker", BROKER_KEYS)
        files = values.pop("tls", None)
        address = self._address(("broker",), values, DEFAULT_BROKER_PORT)
        self._claim_address(("broker",), address)
        tls = None if files is None else self._tls(files)
        if address.path is not None and tls is not None:
            message = "a Unix socket needs no TLS, it does not leave this machine; remove it"
            self.problems.add(("broker", "tls"), message)
        written = is_mapping(mapping.get("broker")) and "tls" in mapping["broker"]
        if address.path is None and not is_loopback(address.host) and not written:
            self.problems.add(
                ("broker", "host"),
                f"other machines can reach {address.host}: that needs "
                "`tls: {cert: FILE, key: FILE}`; 127.0.0.1 needs nothing",
            )
        return address, tls

    def _tls(self, files: Mapping[str, str]) -> Tls:
        """The certificate and its key, which must be there."""
        for key, name in files.items():
            if not self.file_exists(self._absolute(name)):
                advice = "the path starts from the YAML's folder"
                self.problems.refuse(("broker", "tls", key), "an existing file", name, advice)
        return Tls(cert=self._absolute(files["cert"]), key=self._absolute(files["key"]))

    def _policy(self, mapping: Mapping[Any, Any]) -> PolicyConfig:
        """``policy: least_load``, or a mapping with the name and the weights."""
        policy = mapping.get("policy", {})
        if policy is not None and not isinstance(policy, str) and not is_mapping(policy):
            self.problems.refuse(("policy",), "a policy's name, or keys such as `name:`", policy)
            return PolicyConfig()
        if isinstance(policy, str):
            name = POLICY_KEYS["name"].read(self.problems, ("policy",), policy)
            return PolicyConfig(name=self._policy_class(("policy",), name or PolicyConfig().name))
        config = PolicyConfig(**self._section(mapping, "policy", POLICY_KEYS))
        return replace(config, name=self._policy_class(("policy", "name"), config.name))

    def _policy_class(self, path: KeyPath, name: str) -> str:
        """A class of the user's with the absolute path of its file, if it is in one."""
        file, _, owner = name.rpartition(":")
        if not file.endswith(".py"):
            return name
        if not self.file_exists(self._absolute(file)):
            advice = "the path starts from the YAML's folder"
            self.problems.refuse(path, "an existing Python file", file, advice)
        return f"{self._absolute(file)}:{owner}"

    def _durability(self, mapping: Mapping[Any, Any]) -> DurabilityConfig:
        """``durability: disk``, or a mapping with the level and more."""
        section = mapping.get("durability")
        if isinstance(section, str):
            mapping = {"durability": {"level": section}}
        config = DurabilityConfig(**self._section(mapping, "durability", DURABILITY_KEYS))
        if config.level == "disk" and config.synchronous == "normal":
            self.problems.refuse(
                ("durability", "synchronous"),
                "full or extra",
                config.synchronous,
                "level disk promises what normal does not keep; use level: process",
            )
        return config

    def _workers(self, workers: object) -> tuple[WorkerConfig, ...]:
        """A number, the short form with ``count``, or a list."""
        path: KeyPath = ("workers",)
        if is_whole(workers):
            count = COUNT.read(self.problems, path, workers) or 1
            return tuple(WorkerConfig(name=default_worker_name(i)) for i in range(count))
        if is_mapping(workers):
            return self._short_workers(workers)
        if not isinstance(workers, (list, tuple)) or not workers:
            expected = "a list of workers, a number of them, or `count: 3`"
            advice = "at least one worker is needed" if workers == [] else ""
            found: object = "[]" if workers == [] else workers
            self.problems.refuse(path, expected, found, advice)
            return ()
        if len(workers) > WORKERS_MAX:
            expected = f"at most {WORKERS_MAX} workers"
            self.problems.add(path, f"expected {expected}, found {len(workers)}", expected=expected)
            return ()
        return tuple(self._worker(index, worker) for index, worker in enumerate(workers))

    def _short_workers(self, workers: Mapping[Any, Any]) -> tuple[WorkerConfig, ...]:
        path: KeyPath = ("workers",)
        if "count" not in workers and workers and all(map(is_mapping, workers.values())):
            advice = "write each as `- {name: worker-1}`"
            self.problems.refuse(path, "a list of workers", workers, advice)
            return ()
        if "count" not in workers:
            self.problems.add(path, "expected `count: 3` or a list of workers; add the count")
        values = self._keys(path, workers, SHORT_WORKERS_KEYS)
        count = values.pop("count", 1)
        self._check_cores(path, workers, values.get("cpus", ()))
        address = Address(host=values.pop("host", Address().host))
        return tuple(
            WorkerConfig(name=default_worker_name(index), address=address, **values)
            for index in range(count)
        )

    def _worker(self, index: int, worker: object) -> WorkerConfig:
        path: KeyPath = ("workers", index)
        if isinstance(worker, str):
            advice = f"write `- {{name: {worker}}}`" if NAME.fullmatch(worker) else ""
            self.problems.refuse(path, "keys such as `name:` and `port:`", worker, advice)
            worker = {}
        values = self._keys(path, worker, WORKER_KEYS)
        misnamed = is_mapping(worker) and "name" in worker and "name" not in values
        name = values.pop("name", default_worker_name(index))
        taken_by = self.names.setdefault(name, path)
        if taken_by != path and not misnamed:
            other = self._place(taken_by, "name")
            self.problems.add(
                (*path, "name"), f"{show(name)} is already the name of {other}; choose another"
            )
        address = self._address(path, values, 0)
        self._claim_address(path, address)
        self._check_cores(path, worker, values.get("cpus", ()))
        return WorkerConfig(name=name, address=address, **values)

    def _address(self, path: KeyPath, values: dict[str, Any], port: int) -> Address:
        """Take ``host``, ``port`` and ``path`` out of ``values``: a socket is one or the other."""
        host, own_port = values.pop("host", None), values.pop("port", None)
        socket_path = values.pop("path", None)
        if socket_path is None:
            return Address(
                host=Address().host if host is None else host,
                port=port if own_port is None else own_port,
            )
        given = " and ".join(
            f"`{key}`" for key, value in (("host", host), ("port", own_port)) if value is not None
        )
        where = (*path, "path")
        if given:
            self.problems.add(where, f"a Unix socket has no {given}; keep either that or `path`")
        absolute = self._absolute(socket_path)
        size = len(absolute.encode("utf-8", "surrogatepass"))
        if size > SOCKET_PATH_BYTES_MAX:
            self.problems.add(
                where,
                f"expected a path of at most {SOCKET_PATH_BYTES_MAX} bytes, found {size} with "
                f"its folder; choose a shorter one",
                expected=f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes",
                found=show(absolute),
            )
        elif absolute.endswith("/"):
            self.problems.refuse(where, BROKER_KEYS["path"].expected, socket_path)
        return Address(path=absolute)

    def _claim_address(self, path: KeyPath, address: Address) -> None:
        """Note an address that another process of this topology has; port 0 is never the same."""
        if address.path is None and address.port == 0:
            return
        taken_by = self.addresses.setdefault(str(address), path)
        if taken_by == path:
            return
        key = "port" if address.path is None else "path"
        noun = f"port {address.port}" if address.path is None else "this socket"
        other = self._place(taken_by, key)
        self.problems.add((*path, key), f"{noun} is already that of {other}; choose another")

    def _place(self, path: KeyPath, key: str) -> str:
        """Which process has a value already, and where that was written."""
        written = (*path, key) in self.problems.origins
        where = str(self.problems.origin((*path, key))) if written else "by default"
        return f"{spell_path(path)} ({where})"

    def _check_cores(self, path: KeyPath, section: object, cpus: tuple[int, ...]) -> None:
        missing = [core for core in cpus if core >= self.cores]
        if not missing or not is_mapping(section):
            return
        positions = _positions(section["cpus"])
        expected = f"a core from 0 to {self.cores - 1}"
        for core in missing:
            where = (*path, "cpus", positions[core])
            self.problems.refuse(where, expected, core, "this machine has no more")

    def _tasks(self, tasks: object) -> tuple[str, ...]:
        """Modules as they are; files as absolute paths that exist."""
        positions = _positions(tasks)
        names: list[str] = []
        for name in TASKS.read(self.problems, ("tasks",), tasks) or ():
            path: KeyPath = ("tasks", positions[name])
            is_file = name.endswith(".py")
            names.append(self._absolute(name) if is_file else name)
            if not is_file and not MODULE.fullmatch(name):
                self.problems.refuse(path, TASKS.item.expected, name)
            elif is_file and not self.file_exists(names[-1]):
                advice = "the path starts from the YAML's folder"
                self.problems.refuse(path, "an existing Python file", name, advice)
        return tuple(names)

    def _absolute(self, path: str) -> str:
        while path.startswith("./"):
            path = path[2:].lstrip("/")
        return path if path.startswith("/") else f"{self.folder}/{path}"


def _positions(entries: object) -> dict[object, int]:
    """Where each plain entry of a list stands first."""
    positions: dict[object, int] = {}
    for index, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
        if isinstance(entry, (str, int)):
            positions.setdefault(entry, index)
    return positions


def _text(key: object) -> str:
    """A key of any type as text, for its path in a message."""
    return key if isinstance(key, str) else show(key)


def describe_topology(topology: Topology) -> dict[str, Any]:
    """The mapping that ``build_topology`` makes this topology of, every default written out."""
    return {
        "version": 1,
        "name": topology.name,
        "broker": {
            **_describe_address(topology.broker),
            **({} if topology.tls is None else {"tls": asdict(topology.tls)}),
        },
        "workers": [
            {
                "name": worker.name,
                **_describe_address(worker.address),
                "weight": worker.weight,
                "concurrency": worker.concurrency,
                "cpus": list(worker.cpus),
                "nice": worker.nice,
                "tags": list(worker.tags),
                "env": dict(worker.env),
            }
            for worker in topology.workers
        ],
        **{
            section: {key: getattr(getattr(topology, section), key) for key in SECTIONS[section]}
            for section in ("policy", "logs", "limits", "durability")
        },
        "tasks": list(topology.tasks),
    }


def _describe_address(address: Address) -> dict[str, Any]:
    if address.path is not None:
        return {"path": address.path}
    return {"host": address.host, "port": address.port}
