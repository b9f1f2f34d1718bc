"""Tests of the chart: lint, a matrix of values and versions against Kubernetes' schemas, refusals, and what must fit together.

Run by `scripts/test-packaging chart`: python helm/test_chart.py BANMESH
"""

import base64
import copy
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

CHART = pathlib.Path(__file__).parent / "banmesh"
BIN = pathlib.Path(sys.executable).parent
BANMESH = sys.argv[1]
KEPT = tempfile.TemporaryDirectory(prefix="banmesh-chart-")
WORK = pathlib.Path(KEPT.name)
CERTIFICATES = WORK / "certificates"
UNKNOWN_KINDS = ("ServiceMonitor", "PrometheusRule")
SIDECAR = "examples/values-sidecar.yaml"
failures = []


def run(*words):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def template(*options, values=None, kube="1.34.0", name="t"):
    words = [BIN / "helm", "template", name, CHART, "--namespace", "edge", "--kube-version", kube, *options]
    if values is not None:
        file = WORK / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        words += ["-f", file]
    return run(*words)


def check(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message)


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def structure(objects, label):
    """What no schema sees: names, selectors and ports that must fit."""
    workload = (of_kind(objects, "StatefulSet") + of_kind(objects, "DaemonSet"))[0]
    pod = workload["spec"]["template"]
    labels = pod["metadata"]["labels"]
    spec = pod["spec"]
    node = spec["containers"][0]
    ports = {p["name"]: p for p in node["ports"]}
    config = yaml.safe_load(configuration(objects))
    services = {s["metadata"]["name"]: s for s in of_kind(objects, "Service")}
    all_ports = {p["name"]: p for c in spec["containers"] for p in c.get("ports", [])}

    def matches(selector, found):
        return all(found.get(k) == v for k, v in selector.items())

    check(matches(workload["spec"]["selector"]["matchLabels"], labels), f"{label}: the workload selects its pods")
    for name, service in services.items():
        check(matches(service["spec"]["selector"], labels), f"{label}: {name} selects the pods")
        for port in service["spec"]["ports"]:
            target = all_ports.get(port["targetPort"])
            check(target is not None, f"{label}: {name} leads to a port that exists")
            if target:
                check(target.get("protocol", "TCP") == port.get("protocol", "TCP"), f"{label}: {name}: protocol")
        for other in of_kind(objects, "Pod"):
            check(not matches(service["spec"]["selector"], other["metadata"]["labels"]), f"{label}: {name} leaves others alone")
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for found in of_kind(objects, kind):
            selector = found["spec"].get("selector", found["spec"].get("podSelector"))["matchLabels"]
            check(matches(selector, labels), f"{label}: {kind} selects the pods")
    for found in of_kind(objects, "ServiceMonitor"):
        selected = [n for n, s in services.items() if matches(found["spec"]["selector"]["matchLabels"], s["metadata"]["labels"])]
        check(len(selected) == 1 and selected[0].endswith("-metrics"), f"{label}: ServiceMonitor selects the metrics alone: {selected}")
    # Policies name ports of the pod.
    for policy in of_kind(objects, "NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            check(rule["from"], f"{label}: a rule without `from` would let everybody in")
            for port in rule["ports"]:
                check(ports[port["port"]].get("protocol", "TCP") == port["protocol"], f"{label}: policy port {port}")
        first = policy["spec"]["ingress"][0]
        check(matches(first["from"][0]["podSelector"]["matchLabels"], labels), f"{label}: gossip is for members")
    # Seeds, ports and paths agree with the configuration.
    headless = [s for s in services.values() if s["metadata"]["name"].endswith("-headless")][0]
    check(headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"] is True, f"{label}: headless")
    if workload["kind"] == "StatefulSet":
        check(workload["spec"]["serviceName"] == headless["metadata"]["name"], f"{label}: serviceName exists")
    seed, port = config["cluster"]["seeds"][0].rsplit(":", 1)
    check(seed.startswith(f"{headless['metadata']['name']}.edge.svc."), f"{label}: the seed is the headless service")
    check(int(port) == ports["gossip-udp"]["containerPort"] == ports["gossip-tcp"]["containerPort"], f"{label}: gossip port")
    check(config["cluster"]["listen"].endswith(f":{port}"), f"{label}: cluster.listen")
    check(config["spoa"]["port"] == ports["spop"]["containerPort"], f"{label}: SPOP port")
    syslog, tls = config["syslog"], config["syslog"]["tls"]
    for protocol in ("udp", "tcp", "tls"):
        wanted = tls["enabled"] if protocol == "tls" else syslog["enabled"] and syslog["protocol"] in (protocol, "both")
        check((f"syslog-{protocol}" in ports) == wanted, f"{label}: syslog over {protocol}")
        check(any(n.endswith(f"-syslog-{protocol}") for n in services) == wanted, f"{label}: service for {protocol}")
        if wanted:
            address = (tls if protocol == "tls" else syslog)["address"]
            check(address.endswith(f":{ports[f'syslog-{protocol}']['containerPort']}"), f"{label}: the port of {protocol}: {address}")
        for policy in of_kind(objects, "NetworkPolicy"):
            opened = [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]]
            check((f"syslog-{protocol}" in opened) == wanted, f"{label}: the policy and syslog over {protocol}")
    check(config["prometheus"]["enabled"] == ("metrics" in ports), f"{label}: metrics port")
    mounts = {m["mountPath"]: m for m in node["volumeMounts"]}
    check(config["cluster"]["secret_file"].rsplit("/", 1)[0] in mounts, f"{label}: the keyring is mounted")
    check(config["node"]["data_dir"] in mounts, f"{label}: the data directory is mounted")
    for file in filter(None, (tls.get(key) for key in ("certificate", "key", "client_ca"))):
        check(file.rsplit("/", 1)[0] in mounts, f"{label}: {file} is mounted")
    volumes = {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            check(mount["name"] in volumes, f"{label}: volume {mount['name']} exists")
        security = container.get("securityContext", {})
        check(security.get("readOnlyRootFilesystem") and security["capabilities"]["drop"] == ["ALL"], f"{label}: hardened")
    # The way out.
    before = node.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = int(config["spoa"]["drain"].rstrip("s"))
    check(before + drain < spec["terminationGracePeriodSeconds"], f"{label}: the grace period covers the way out")
    env = {e["name"]: e for e in node["env"]}
    check({"FAIL2BAN_NODE_ID", "FAIL2BAN_CLUSTER_ADVERTISE"} <= set(env), f"{label}: identity")
    # Secrets: the one that is made holds a key that banmesh takes.
    secrets = of_kind(objects, "Secret")
    for secret in secrets:
        check(secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", f"{label}: the key is kept")
        key = base64.b64decode(next(iter(secret["data"].values()))).decode()
        check(len(base64.b64decode(key)) == 32, f"{label}: a key of 32 bytes")
    check_configuration(configuration(objects), env, label)
    for rule in of_kind(objects, "PrometheusRule"):
        alerts(rule["spec"], workload["metadata"]["name"], label)
    for found in of_kind(objects, "ConfigMap"):
        if "banmesh.json" in found["data"]:
            shipped = json.loads((CHART / "files/banmesh.json").read_text())
            check(json.loads(found["data"]["banmesh.json"]) == shipped, f"{label}: the dashboard")
            check(found["metadata"]["labels"].get("grafana_dashboard") == "1", f"{label}: Grafana's sidecar finds the dashboard")


def configuration(objects):
    return next(o["data"]["config.yaml"] for o in of_kind(objects, "ConfigMap") if "config.yaml" in o["data"])


def alerts(spec, name, label):
    """The shipped alerts, about this release's nodes."""
    shipped = yaml.safe_load((CHART / "files/banmesh.rules.yaml").read_text())

    def names(groups):
        return [rule.get("alert") or rule["record"] for group in groups for rule in group["rules"]]

    check(names(spec["groups"]) == names(shipped["groups"]), f"{label}: the alerts")
    jobs = [m for group in spec["groups"] for rule in group["rules"] for m in re.findall(r'job(=~?"[^"]*")', rule["expr"])]
    check(jobs and set(jobs) == {f'="{name}-metrics"'}, f"{label}: the alerts' jobs: {jobs}")
    if shutil.which("promtool"):
        file = WORK / "rules.yaml"
        file.write_text(yaml.safe_dump(spec))
        done = run("promtool", "check", "rules", file)
        check(done.returncode == 0, f"{label}: promtool: {done.stdout}{done.stderr}")


def check_configuration(text, env, label):
    file = WORK / "config.yaml"
    file.write_text(text)
    given = {"FAIL2BAN_NODE_ID": "t-banmesh-0", "FAIL2BAN_CLUSTER_ADVERTISE": "10.1.2.3"}
    given |= {name: "secret" for name in env if name.startswith("FAIL2BAN_API")}
    # What a Secret would put there.
    text = text.replace("/etc/banmesh/syslog-tls", str(CERTIFICATES))
    done = subprocess.run([BANMESH, "check", "--offline", "--config", file], env=given, capture_output=True, text=True)
    check(done.returncode == 0, f"{label}: banmesh check: {done.stdout}{done.stderr}")


def valid(rendered, label, version):
    """Keeps what was rendered for `all_valid`: starting the validator takes longer than its work."""
    file = WORK / version / (label.replace(" ", "-").replace(",", "") + ".yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(rendered)


def all_valid():
    for directory in WORK.glob("1.*"):
        done = run(BIN / "kubernetes-validate", "--strict", "-k", directory.name, *sorted(directory.iterdir()))
        text = done.stdout + done.stderr
        check(done.returncode == 0, f"kubernetes-validate {directory.name}: {text}")
        # A kind that it does not know is a warning only.
        for line in text.splitlines():
            if "WARN" in line:
                check(any(kind in line for kind in UNKNOWN_KINDS), line)


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


POLICY = {"networkPolicy": {"enabled": True, "spopFrom": [{"podSelector": {"matchLabels": {"app": "haproxy"}}}],
                            "syslogFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}}
TLS = {"syslog": {"tls": {"enabled": True, "secret": "syslog-tls"}}}
API = {"api": {"enabled": True, "authSecret": "banmesh-api"}}
CASES = {
    "defaults": {},
    "one": {"replicaCount": 1, "persistence": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
    "five": {"replicaCount": 5, "service": {"ipFamilyPolicy": "PreferDualStack"}},
    "daemonset": {"mode": "daemonset", "persistence": {"enabled": False}},
    "host network": {"mode": "daemonset", "persistence": {"enabled": False}, "hostNetwork": True},
    "ipv6": {"listenAddress": "::"},
    "udp": {"syslog": {"protocol": "udp"}},
    "tcp": {"syslog": {"protocol": "tcp"}, "service": {"syslog": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}}},
    "tls beside": merged(TLS, POLICY, {"service": {"syslog": {"type": "NodePort", "nodePort": 30514, "tlsNodePort": 30614}}}),
    "tls alone": merged(TLS, POLICY, {"syslog": {"enabled": False, "tls": {"clientCaKey": "ca.crt"}}}),
    "no syslog": {"syslog": {"enabled": False}},
    "no metrics": {"metrics": {"enabled": False}},
    "monitored": {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}},
    "policy": POLICY,
    "api": API,
    "all": merged(POLICY, API, {"metrics": {"serviceMonitor": {"enabled": True}}, "networkPolicy": {"apiFrom": [{"podSelector": {}}]}}),
    "secret": {"cluster": {"keyring": {"existingSecret": "mine", "secretKey": "keys"}, "extraSeeds": ["node1.example.org:12350"]}},
    "names": {"fullnameOverride": "a-name-that-is-longer-than-anybody-would-think-of-giving"},
    "configured": {"config": {"ban": {"max_attempts": 3, "initial_ban_time": "1h30m"}, "filters": {"enabled": ["all"]},
                              "syslog": {"allowed_senders": ["192.0.2.0/24"], "receive_buffer": "8MiB"},
                              "spoa": {"max_clients": 1000}, "cluster": {"profile": "wan"}}},
    "scheduled": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high",
                  "affinity": {"nodeAffinity": {}}, "imagePullSecrets": [{"name": "pull"}], "podAnnotations": {"a": "b"},
                  "image": {"digest": "sha256:" + "0" * 64}, "extraEnv": [{"name": "TZ", "value": "UTC"}]},
}
REFUSED = {
    "unknown key": {"replicas": 3},
    "unknown key below": {"spop": {"prot": 1}},
    "unknown key of banmesh": {"config": {"ban": {"max_atempts": 3}}},
    "a key that the chart sets": {"config": {"spoa": {"port": 1}}},
    "the drain": {"config": {"spoa": {"drain": "3s"}}},
    "no duration": {"config": {"ban": {"time_window": "10"}}},
    "no network": {"config": {"allowlist": ["localhost"]}},
    "no replicas": {"replicaCount": 0},
    "text for a number": {"replicaCount": "3"},
    "privileged port": {"syslog": {"port": 514}},
    "protocol": {"syslog": {"protocol": "sctp"}},
    "seed without port": {"cluster": {"extraSeeds": ["node1"]}},
    "digest": {"image": {"digest": "sha256:1"}},
    "mode": {"mode": "deployment"},
    "grace": {"termination": {"drainSeconds": 30}},
    "daemonset with volumes": {"mode": "daemonset"},
    "host network": {"hostNetwork": True},
    "TLS without a certificate": {"syslog": {"tls": {"enabled": True}}},
    "one port for two": merged(TLS, {"syslog": {"port": 6514}}),
    "the files of TLS": {"config": {"syslog": {"tls": {"certificate": "/a"}}}},
    "API without a password": {"api": {"enabled": True}},
    "policy that locks HAProxy out": {"networkPolicy": {"enabled": True}},
    "policy that locks the senders out": {"networkPolicy": {"enabled": True, "spopFrom": [{"podSelector": {}}]}},
    "policy on the machine's network": merged(POLICY, CASES["host network"]),
}


def main():
    CERTIFICATES.mkdir()
    certificate = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=banmesh", "-days", "2",
                      "-keyout", CERTIFICATES / "tls.key", "-out", CERTIFICATES / "tls.crt")
    check(certificate.returncode == 0, certificate.stderr)
    shutil.copy(CERTIFICATES / "tls.crt", CERTIFICATES / "ca.crt")
    lint = run(BIN / "helm", "lint", "--strict", CHART)
    check(lint.returncode == 0, lint.stdout + lint.stderr)
    rendered = 0
    for (label, values), kube in itertools.product(CASES.items(), ("1.25.0", "1.34.0")):
        done = template(values=values, kube=kube)
        if done.returncode:
            check(False, f"{label}: {done.stderr}")
            continue
        structure([o for o in yaml.safe_load_all(done.stdout) if o], f"{label}, {kube}")
        valid(done.stdout, label, kube.rsplit(".", 1)[0])
        rendered += 1
    for example in sorted((CHART / "examples").glob("*.yaml")):
        done = template("-f", example)
        check(done.returncode == 0, f"{example.name}: {done.stderr}")
        if done.returncode == 0:
            structure([o for o in yaml.safe_load_all(done.stdout) if o], example.name)
            valid(done.stdout, example.name, "1.34")
            rendered += 1
    all_valid()
    for label, values in REFUSED.items():
        check(template(values=values).returncode != 0, f"accepted: {label}")
    configuration_changes_roll()
    every_key_has_a_schema()
    every_key_is_in_the_readme()
    print(f"chart: {rendered} renderings, {len(REFUSED)} refusals, {len(failures)} failures")
    return 1 if failures else 0


def configuration_changes_roll():
    def annotation(values):
        objects = [o for o in yaml.safe_load_all(template(values=values).stdout) if o]
        return of_kind(objects, "StatefulSet")[0]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    before, again = annotation({}), annotation({"replicaCount": 5})
    check(before == again, "scaling must not restart pods")
    check(before != annotation({"config": {"ban": {"max_attempts": 3}}}), "a change of the configuration restarts pods")


def every_key_has_a_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def walk(value, schema, path):
        if "properties" not in schema:
            return
        check(schema.get("additionalProperties") is False, f"{path}: unknown keys are refused")
        for key in value if isinstance(value, dict) else ():
            check(key in schema["properties"], f"{path}{key}: not in the schema")
            walk(value[key], schema["properties"].get(key, {}), f"{path}{key}.")

    walk(values, schema, "")
    # And every key of banmesh is one of `config`, or is set by the chart.
    text = configuration([o for o in yaml.safe_load_all(template(values=merged(API)).stdout) if o])
    by_chart = yaml.safe_load(text)
    by_chart["node"]["id"] = by_chart["cluster"]["advertise"] = by_chart["cluster"]["insecure"] = by_chart["admin"] = None
    known = schema["properties"]["config"]["properties"]
    for section, keys in yaml.safe_load((CHART.parents[1] / "config/banmesh.yaml").read_text()).items():
        for key in keys if isinstance(keys, dict) else ():
            allowed = key in known.get(section, {}).get("properties", {})
            set_here = section == "admin" or key in (by_chart.get(section) or {})
            check(allowed or set_here, f"config.{section}.{key} of banmesh is unknown to the chart")


def every_key_is_in_the_readme():
    readme = (CHART / "README.md").read_text()

    def walk(value, path):
        for key, below in value.items():
            name = f"{path}{key}"
            if isinstance(below, dict) and below and name not in ("config", "podSecurityContext", "securityContext", "resources", "probes"):
                walk(below, name + ".")
            else:
                check(f"`{name}`" in readme, f"{name} is not in the README: run helm/readme.py")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), "")


if __name__ == "__main__":
    sys.exit(main())
