"""Every value has an effect that can be seen in what is rendered, a schema that refuses what is wrong, and a line in the README."""

import collections
import concurrent.futures
import json
import os

import jsonschema
import yaml

from rendering import API, CHART, DAEMONSET, LISTENERS, POLICY, TLS, check, configuration, merged, objects_of, template

# Those whose content is Kubernetes' or banmesh's own, and is one row of the README.
LEAVES = ("config", "podSecurityContext", "securityContext", "resources", "probes")
# Kubernetes' own, to any depth.
FREE = ("affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity", "lifecycle.preStop", "lifecycle.postStart")
SELECTOR = {"podSelector": {"matchLabels": {"app": "sample"}}}

# For every value another one than its default.
SAMPLES = {
    "replicaCount": 7,
    "mode": "daemonset",
    "image.repository": "registry.example.org/sample",
    "image.tag": "sample",
    "image.digest": "sha256:" + "5" * 64,
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "sample"}],
    "nameOverride": "sample",
    "fullnameOverride": "sample",
    "clusterDomain": "sample.example",
    "config": {"ban": {"max_attempts": 77}},
    "filters": {"sample.yaml": "sample"},
    "secretFiles": ["sample"],
    "listenAddress": "192.0.2.7",
    "spop.port": 20001,
    "syslog.enabled": False,
    "syslog.protocol": "tcp",
    "syslog.port": 20002,
    "syslog.tls.enabled": True,
    "syslog.tls.port": 20003,
    "syslog.tls.secret": "sample",
    "syslog.tls.clientCaKey": "sample.crt",
    "cluster.port": 20004,
    "cluster.extraSeeds": ["sample.example.org:12350"],
    "cluster.keyring.existingSecret": "sample",
    "cluster.keyring.secretKey": "sample",
    "api.enabled": True,
    "api.port": 20005,
    "api.authSecret": "sample",
    "api.allowedIps": ["192.0.2.7/32"],
    "metrics.enabled": False,
    "metrics.port": 20006,
    "metrics.serviceMonitor.enabled": True,
    "metrics.serviceMonitor.interval": "77s",
    "metrics.serviceMonitor.scrapeTimeout": "7s",
    "metrics.serviceMonitor.labels": {"sample": "sample"},
    "metrics.serviceMonitor.relabelings": [{"targetLabel": "sample"}],
    "metrics.serviceMonitor.metricRelabelings": [{"targetLabel": "sample"}],
    "metrics.podMonitor.enabled": True,
    "metrics.podMonitor.interval": "77s",
    "metrics.podMonitor.scrapeTimeout": "7s",
    "metrics.podMonitor.labels": {"sample": "sample"},
    "metrics.podMonitor.relabelings": [{"targetLabel": "sample"}],
    "metrics.podMonitor.metricRelabelings": [{"targetLabel": "sample"}],
    "ingress.enabled": True,
    "ingress.className": "sample",
    "ingress.host": "sample.example.org",
    "ingress.tlsSecret": "sample",
    "ingress.annotations": {"sample": "sample"},
    "httpRoute.enabled": True,
    "httpRoute.parentRefs": [{"name": "sample"}],
    "httpRoute.hostnames": ["sample.example.org"],
    "httpRoute.annotations": {"sample": "sample"},
    "metrics.prometheusRule.enabled": True,
    "metrics.prometheusRule.labels": {"sample": "sample"},
    "metrics.dashboard.enabled": True,
    "metrics.dashboard.labels.grafana_dashboard": "sample",
    "metrics.dashboard.annotations": {"sample": "sample"},
    "termination.preStopSeconds": 7,
    "termination.drainSeconds": 9,
    "termination.gracePeriodSeconds": 77,
    "service.ipFamilyPolicy": "PreferDualStack",
    "service.spop.type": "LoadBalancer",
    "service.spop.port": 20007,
    "service.spop.clusterIP": "None",
    "service.spop.internalTrafficPolicy": "Local",
    "service.spop.annotations": {"sample": "sample"},
    "service.syslog.type": "NodePort",
    "service.syslog.port": 1514,
    "service.syslog.tlsPort": 1614,
    "service.syslog.externalTrafficPolicy": "Cluster",
    "service.syslog.loadBalancerClass": "sample",
    "service.syslog.loadBalancerSourceRanges": ["192.0.2.7/32"],
    "service.syslog.udpNodePort": 30007,
    "service.syslog.tcpNodePort": 30009,
    "service.syslog.tlsNodePort": 30008,
    "service.syslog.annotations": {"sample": "sample"},
    "service.api.type": "NodePort",
    "service.api.port": 20008,
    "service.api.annotations": {"sample": "sample"},
    "persistence.enabled": False,
    "persistence.size": "77Gi",
    "persistence.storageClass": "sample",
    "persistence.accessModes": ["ReadWriteOncePod"],
    "persistence.annotations": {"sample": "sample"},
    "persistence.whenDeleted": "Delete",
    "persistence.whenScaled": "Delete",
    "podDisruptionBudget.enabled": False,
    "podDisruptionBudget.maxUnavailable": "77%",
    "networkPolicy.enabled": True,
    "networkPolicy.spopFrom": [SELECTOR],
    "networkPolicy.syslogFrom": [SELECTOR],
    "networkPolicy.apiFrom": [SELECTOR],
    "networkPolicy.listenersFrom": [{"podSelector": {"matchLabels": {"app": "another-sample"}}}],
    "networkPolicy.metricsFrom": [SELECTOR],
    "networkPolicy.clusterFrom": [SELECTOR],
    "networkPolicy.dnsPorts": [77],
    "networkPolicy.extraEgress": [{"to": [SELECTOR]}],
    "serviceAccount.create": False,
    "serviceAccount.name": "sample",
    "serviceAccount.annotations": {"sample": "sample"},
    "commonLabels": {"sample": "sample"},
    "workloadAnnotations": {"sample": "sample"},
    "podAnnotations": {"sample": "sample"},
    "podLabels": {"sample": "sample"},
    "podSecurityContext": {"supplementalGroups": [777]},
    "securityContext": {"procMount": "Default"},
    "resources": {"limits": {"cpu": "77m"}},
    "probes": {"startup": {"failureThreshold": 77}},
    "topologySpreadConstraints": [{"maxSkew": 7, "topologyKey": "sample", "whenUnsatisfiable": "DoNotSchedule"}],
    "nodeSelector": {"sample": "sample"},
    "tolerations": [{"key": "sample"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    "priorityClassName": "sample",
    "runtimeClassName": "sample",
    "schedulerName": "sample",
    "revisionHistoryLimit": 77,
    "minReadySeconds": 77,
    "hostNetwork": True,
    "dnsConfig": {"searches": ["sample.example"]},
    "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["sample"]}],
    "updateStrategy": {"type": "OnDelete"},
    "extraEnv": [{"name": "SAMPLE", "value": "sample"}],
    "extraEnvFrom": [{"secretRef": {"name": "sample"}}],
    "initContainers": [{"name": "sample", "image": "sample"}],
    "lifecycle": {"preStop": {"exec": {"command": ["sample"]}}},
    "extraVolumes": [{"name": "sample", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "sample", "mountPath": "/sample"}],
    "extraContainers": [{"name": "sample", "image": "sample"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sample"}}],
    "tests.enabled": False,
    "tests.image": "sample",
    "tests.seconds": 77,
}
for number, listener in enumerate(LISTENERS):
    SAMPLES |= {f"listeners.{listener}.enabled": True, f"listeners.{listener}.port": 21001 + number,
                f"listeners.{listener}.servicePort": 22001 + number, f"listeners.{listener}.serviceType": "LoadBalancer"}
# What must be on for a value to mean something; the longest beginning counts.
NEEDS = {
    "hostNetwork": DAEMONSET,
    "syslog.tls": TLS,
    "syslog.tls.enabled": {"syslog": {"tls": {"secret": "syslog-tls"}}},
    "service.syslog.tlsPort": TLS,
    "api": API,
    "api.enabled": {"api": {"authSecret": "banmesh-api"}},
    "service.api": API,
    "metrics.serviceMonitor": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "metrics.prometheusRule": {"metrics": {"prometheusRule": {"enabled": True}}},
    "metrics.dashboard": {"metrics": {"dashboard": {"enabled": True}}},
    "service.syslog.externalTrafficPolicy": {"service": {"syslog": {"type": "NodePort"}}},
    "service.syslog.udpNodePort": {"service": {"syslog": {"type": "NodePort"}}},
    "service.syslog.tcpNodePort": {"service": {"syslog": {"type": "NodePort"}}},
    "service.syslog.tlsNodePort": merged(TLS, {"service": {"syslog": {"type": "NodePort"}}}),
    "service.syslog.loadBalancer": {"service": {"syslog": {"type": "LoadBalancer"}}},
    "networkPolicy": merged(POLICY, API),
    "networkPolicy.listenersFrom": merged(POLICY, {"listeners": {"policy": {"enabled": True}}, "networkPolicy": {"listenersFrom": [SELECTOR]}}),
    "ingress": merged(API, {"ingress": {"enabled": True, "host": "page.example.org"}}),
    "ingress.enabled": merged(API, {"ingress": {"host": "page.example.org"}}),
    "httpRoute": merged(API, {"httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}}),
    "httpRoute.enabled": merged(API, {"httpRoute": {"parentRefs": [{"name": "edge"}]}}),
    "metrics.podMonitor": {"metrics": {"podMonitor": {"enabled": True}}},
}
for listener in LISTENERS:
    NEEDS |= {f"listeners.{listener}": {"listeners": {listener: {"enabled": True}}}, f"listeners.{listener}.enabled": {}}
for switch in ("metrics.serviceMonitor", "metrics.podMonitor", "metrics.prometheusRule", "metrics.dashboard"):
    NEEDS[switch + ".enabled"] = {}


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def needed(path):
    found = max((prefix for prefix in NEEDS if path.startswith(prefix)), key=len, default=None)
    # The rest of a policy must be there for it to be switched on.
    if path == "networkPolicy.enabled":
        return merged(POLICY, {"networkPolicy": {"enabled": False}})
    return NEEDS.get(found, {})


def leaves(values, path=""):
    for key, below in values.items():
        name = f"{path}{key}"
        if isinstance(below, dict) and below and name not in LEAVES:
            yield from leaves(below, name + ".")
        else:
            yield name


def scalars(value):
    if isinstance(value, dict):
        for each in value.values():
            yield from scalars(each)
    elif isinstance(value, list):
        for each in value:
            yield from scalars(each)
    elif not isinstance(value, bool):
        yield str(value)


def without_key(rendered):
    """The key is a new one in every rendering."""
    return [line for line in rendered.splitlines() if not line.strip().startswith(("cluster.key: ", "checksum/config"))]


def every_value_has_an_effect(values):
    names = set(leaves(values))
    # Of the two sources of the key, one must be chosen; `template` chooses, and test_install.py has neither.
    names -= {"cluster.keyring.generate"}
    check(names == set(SAMPLES), f"samples and values differ: {sorted(names ^ set(SAMPLES))}")

    plain_ones = {}

    def effect(path):
        before, sample = needed(path), SAMPLES[path]
        plain = plain_ones[repr(before)] = plain_ones.get(repr(before)) or template(values=before)
        changed = template(values=merged(before, nested(path, sample)))
        if plain.returncode or changed.returncode:
            return f"{path}: {plain.stderr}{changed.stderr}"
        first, second = (collections.Counter(without_key(done.stdout)) for done in (plain, changed))
        added = "\n".join(second - first)
        if first == second:
            return f"{path} has no effect"
        # A switch and a mode change more than a text.
        if path in ("mode", "networkPolicy.enabled") or isinstance(sample, bool):
            return None
        lost = [text for text in scalars(sample) if text not in added]
        return f"{path}: {lost} is not in what was rendered" if lost else None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for wrong in pool.map(effect, sorted(SAMPLES)):
            check(wrong is None, wrong)


def schema_refuses(schema, values):
    """For every object a key that is not known, for every value something of another type."""
    judge = jsonschema.Draft7Validator(schema)
    jsonschema.Draft7Validator.check_schema(schema)
    check(judge.is_valid(values), "the schema takes the defaults")
    refused = 0

    def accepted(path, value):
        return judge.is_valid(merged(values, nested(path, value)))

    def below(found, path):
        nonlocal refused
        for name, part in found.get("properties", {}).items():
            here = f"{path}{name}"
            part = schema["definitions"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
            # Helm's own.
            if here == "global":
                continue
            # An object, for all but objects; and for those a number.
            of_objects = part.get("type") == "object" or "properties" in part
            check(not accepted(here, 7.5 if of_objects else {"no": "such"}), f"{here} takes what it must not")
            refused += 1
            if of_objects and here not in FREE and isinstance(part.get("additionalProperties", True), bool):
                check(not accepted(here, {"nosuchkey": 1}), f"{here} takes an unknown key")
                refused += 1
            below(part, here + ".")

    check(not judge.is_valid(merged(values, {"nosuchkey": 1})), "an unknown key at the top")
    below(schema, "")
    return refused


def every_key_has_a_schema(schema, values):
    def walk(value, schema, path):
        if "properties" not in schema:
            return
        check(schema.get("additionalProperties") is False, f"{path}: unknown keys are refused")
        for key in value if isinstance(value, dict) else ():
            check(key in schema["properties"], f"{path}{key}: not in the schema")
            walk(value[key], schema["properties"].get(key, {}), f"{path}{key}.")

    walk(values, schema, "")
    # And every key of banmesh is one of `config`, or is set by the chart.
    by_chart = yaml.safe_load(configuration(objects_of(template(values=API).stdout)))
    by_chart["node"]["id"] = by_chart["cluster"]["advertise"] = by_chart["cluster"]["insecure"] = by_chart["admin"] = None
    known = schema["properties"]["config"]["properties"]
    for section, keys in yaml.safe_load((CHART.parents[1] / "config/banmesh.yaml").read_text()).items():
        for key in keys if isinstance(keys, dict) else ():
            part = known.get(section, {})
            # `<name>` stands for any name.
            any_name = key == "<name>" and isinstance(part.get("additionalProperties"), dict)
            allowed = any_name or key in part.get("properties", {})
            set_here = section == "admin" or key in (by_chart.get(section) or {})
            check(allowed or set_here, f"config.{section}.{key} of banmesh is unknown to the chart")


def every_key_is_in_the_readme(values):
    readme = (CHART / "README.md").read_text()
    for name in leaves(values):
        check(f"| `{name}` |" in readme, f"{name} is not in the README: run helm/readme.py")


def values_and_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    every_key_has_a_schema(schema, values)
    every_key_is_in_the_readme(values)
    refused = schema_refuses(schema, values)
    every_value_has_an_effect(values)
    return f"{len(SAMPLES)} values with an effect, {refused} wrong ones refused by the schema"
