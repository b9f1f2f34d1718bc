"""The chart and how its tests render it."""

import copy
import pathlib
import subprocess
import sys
import tempfile

import yaml

CHART = pathlib.Path(__file__).parent / "banmesh"
BIN = pathlib.Path(sys.executable).parent
KEPT = tempfile.TemporaryDirectory(prefix="banmesh-chart-")
WORK = pathlib.Path(KEPT.name)
# The oldest that the chart takes, the first where pods sleep on their way out, and the newest whose schemas are there.
OLDEST, FIRST_WITH_PRESTOP, NEWEST = "1.25.0", "1.30.0", "1.37.0"
# The choice that the first `helm install` line makes.
GENERATE = ("--set", "cluster.keyring.generate=true")
failures = []


def check(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message)


def run(*words, **more):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def values_file(values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=WORK, delete=False) as file:
        yaml.safe_dump(values, file)
    return file.name


def template(*options, values=None, kube=NEWEST, name="t"):
    words = [BIN / "helm", "template", name, CHART, "--namespace", "edge", "--kube-version", kube, *GENERATE, *options]
    if values is not None:
        words += ["-f", values_file(values)]
    return run(*words)


def objects_of(rendered):
    return [o for o in yaml.safe_load_all(rendered) if o]


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def configuration(objects):
    return next(o["data"]["config.yaml"] for o in of_kind(objects, "ConfigMap") if "config.yaml" in o.get("data", {}))


def merged(*dicts):
    out = {}

    def into(target, source):
        for key, value in source.items():
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                into(target[key], value)
            else:
                target[key] = copy.deepcopy(value)

    for each in dicts:
        into(out, each)
    return out


# What switches on what is off by default.
POLICY = {"networkPolicy": {"enabled": True, "spopFrom": [{"podSelector": {"matchLabels": {"app": "haproxy"}}}],
                            "syslogFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}}
TLS = {"syslog": {"tls": {"enabled": True, "secret": "syslog-tls"}}}
API = {"api": {"enabled": True, "authSecret": "banmesh-api"}}
DAEMONSET = {"mode": "daemonset"}
LISTENERS = ("verdict", "crowdsec", "lists", "dnsbl", "policy", "authPolicy")
# Every port for programs other than HAProxy, with who may ask.
ASKED = {"listeners": {name: {"enabled": True} for name in LISTENERS},
         "config": {"dnsbl": {"allowed_clients": ["10.0.0.0/8"]}, "auth_policy": {"token": "bm_for-the-tests-Tq7ZcVb2nXw9Ks4"},
                    "crowdsec": {"keys": {"edge": {"key": "for-the-tests-Tq7ZcVb2nXw9Ks4"}}},
                    "lists": {"keys": {"wall": {"key": "for-the-tests-Tq7ZcVb2nXw9Ks4"}}}}}
